"""The API and its page: every route, and what of an open index answers it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from trackstar.storage.errors import InputError
from trackstar.tasks.asking.answers import Document
from trackstar.tasks.asking.completions import Completion
from trackstar.tasks.asking.open_index import OpenIndex
from trackstar.tasks.asking.settings import ASKED_METHODS
from trackstar.tasks.asking.watching import Progress
from trackstar.tasks.methods.settings import BM25, DENSE, GRADIENT_METHODS
from trackstar.tasks.report.templating import STYLE, page_template
from trackstar.tasks.serving.answering import Board, Problem, answered, as_json, event, measured, problem_of, streamed
from trackstar.tasks.serving.desk import Busy, Desk, Ticket
from trackstar.tasks.serving.gate import Gate
from trackstar.tasks.serving.metrics import Metrics
from trackstar.tasks.serving.requests import INDEX_HELP, MOST_NEIGHBOURS, Prompt, Question
from trackstar.tasks.serving.served_indexes import ServedIndexes
from trackstar.tasks.serving.settings import ServingConfig

HERE = Path(__file__).parent
FILES = HERE / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE = {"/": FILES / "index.html", "/page/report.css": STYLE} | {
    f"/page/{path.name}": path for path in sorted(FILES.iterdir()) if path.suffix in KINDS and path.suffix != ".html"
}
READING_THREADS, READING_QUEUE = 2, 64  # a document is read while questions wait
NEWS_EVERY_S = 0.25


class Served:
    """What the routes share."""

    def __init__(self, indexes: ServedIndexes, config: ServingConfig) -> None:
        self.indexes, self.config, self.metrics = indexes, config, Metrics()
        limits = {"timeout_s": config.timeout_s}
        self.asking = Desk("asking", threads=config.threads, queue=config.queue, **limits)
        self.reading = Desk("reading", threads=READING_THREADS, queue=READING_QUEUE, **limits)

    async def answer(self, what: str, desk: Desk, request: Request, work: Callable[[Ticket], Any]) -> Response:
        try:
            with measured(self.metrics, what):
                return as_json(await answered(desk, request, work))
        except Problem as problem:
            return problem.response()

    def ask(self, question: Question, ticket: Ticket, progress: Callable[[OpenIndex, Progress], None] | None) -> Any:
        index = self.indexes[question.index].current()
        wanted, most = question.top_k or index.num_documents, self.config.most_documents
        if wanted > most:
            raise InputError(f"top_k asks for {wanted:,} documents; at most {most:,} are given (--most-documents)")
        found = index.ask(
            question.prompt,
            question.completion,
            contrast=question.contrast,
            methods=question.methods,
            top_k=question.top_k,
            progress=None if progress is None else lambda news: progress(index, news),
            cancelled=ticket.is_stopped,
        )
        return found.to_dict()


def make_app(indexes: ServedIndexes, config: ServingConfig, *, token: str | None = None) -> Gate:
    """The server of some indexes, behind its gate.

    Args:
        token: What requests for data must bring; None answers only requests to this machine's own names.
    """
    served = Served(indexes, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        served.asking.close()
        served.reading.close()

    app = FastAPI(title="TrackStar", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, lambda _, error: as_json({"error": _wrong(error)}, 422))
    app.add_exception_handler(HTTPException, lambda _, error: as_json({"error": error.detail}, error.status_code))
    _add_api(app, served)
    _add_pages(app, served)
    return Gate(app, token=token, request_bytes=config.request_bytes)


def _add_api(app: FastAPI, served: Served) -> None:
    @app.get("/api/indexes", summary="What is served")
    async def indexes(request: Request) -> Response:
        def work(_: Ticket) -> Any:
            return {"indexes": [_index_facts(name, index.current()) for name, index in served.indexes]}

        return await served.answer("indexes", served.reading, request, work)

    @app.post("/api/complete", summary="What the model says after a prompt, token by token")
    async def complete(prompt: Prompt, request: Request) -> Response:
        def work(_: Ticket) -> Any:
            index = served.indexes[prompt.index].current()
            return _completion(index.complete(prompt.prompt, max_tokens=prompt.max_tokens))

        return await served.answer("complete", served.asking, request, work)

    @app.post("/api/ask", summary="The documents that carry a completion: the object of `trackstar ask --json`")
    async def ask(question: Question, request: Request) -> Response:
        return await served.answer("ask", served.asking, request, lambda ticket: served.ask(question, ticket, None))

    @app.post("/api/ask/stream", summary="The same as server-sent events: progress with the best so far, then answer")
    async def ask_stream(question: Question, request: Request) -> Response:
        board = Board()
        tell = _teller(board)
        try:
            ticket = served.asking.take(lambda ticket: served.ask(question, ticket, partial(tell, ticket)))
        except Busy as busy:
            served.metrics.answers.labels("ask_stream", "429").inc()
            return problem_of(busy).response()

        async def events() -> AsyncIterator[bytes]:
            try:
                with measured(served.metrics, "ask_stream"):
                    async for part in streamed(ticket, board, request):
                        yield part
            except Problem as problem:
                yield event("error", {"error": problem.sentence, "status": problem.status})

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/api/documents", summary="A document with those before and after it in the corpus")
    async def documents(
        request: Request,
        id: str = Query(description="The document's id."),
        index: str | None = Query(None, description=INDEX_HELP),
        neighbours: int = Query(3, ge=0, le=MOST_NEIGHBOURS, description="On either side."),
    ) -> Response:
        def work(_: Ticket) -> Any:
            opened = served.indexes[index].current()
            try:
                around = opened.neighbours(id, count=neighbours)
            except InputError as error:
                raise Problem(404, str(error)) from error
            place = next(place for place, document in enumerate(around) if document.id == id)
            told = [_document(document) for document in around]
            return {"document": told[place], "before": told[:place], "after": told[place + 1 :]}

        return await served.answer("documents", served.reading, request, work)


def _add_pages(app: FastAPI, served: Served) -> None:
    for path, file in PAGE.items():
        _add_file(app, path, file.read_bytes(), KINDS[file.suffix])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        template = page_template(HERE / "docs.html.j2")
        return Response(template.render(schema=app.openapi()), media_type="text/html")

    @app.get("/health", summary="Whether the server answers")
    async def health() -> Response:
        return as_json({"status": "ok"})

    @app.get("/metrics", summary="Counters in Prometheus' text format")
    async def metrics() -> Response:
        text = served.metrics.text(served.indexes, (served.asking, served.reading))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind)


def _teller(board: Board) -> Callable[[Ticket, OpenIndex, Progress], None]:
    """Writes news on a board, from the thread that works, and not more often than anybody reads."""
    told = -NEWS_EVERY_S

    def tell(ticket: Ticket, index: OpenIndex, news: Progress) -> None:
        nonlocal told
        if monotonic() - told < NEWS_EVERY_S:
            return
        leaders = [] if news.found is None else index.leaders(news.found)
        facts = {"stage": news.stage, "method": news.method, "done": news.done, "total": news.total}
        ticket.tell(board.write, {**facts, "leaders": [{"id": id_, "score": score} for id_, score in leaders]})
        told = monotonic()

    return tell


def _index_facts(name: str, index: OpenIndex) -> dict[str, Any]:
    able = [
        method
        for method in ASKED_METHODS
        if (method == BM25)
        or (method == DENSE and index.config.dense_encoder is not None)
        or (method in GRADIENT_METHODS and GRADIENT_METHODS[method].changes.get("whitening") != "mixed")
    ]
    return {
        "name": name,
        "path": str(index.path),
        "checkpoint": index.contents.engine.checkpoint.name,
        "num_documents": index.num_documents,
        "methods": able,
    }


def _completion(said: Completion) -> dict[str, Any]:
    tokens = [{"start": t.start, "stop": t.stop, "text": t.text, "probability": t.probability} for t in said.tokens]
    return {"prompt": said.prompt, "completion": said.text, "probability": said.probability, "tokens": tokens}


def _document(document: Document) -> dict[str, Any]:
    facts = {"id": document.id, "text": document.text, "file": document.file, "row": document.row}
    return {**facts, "columns": dict(document.columns)}


def _wrong(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, in a sentence."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"][1:])) or "the request"
    if problem["type"] == "missing":
        return f"{place} is missing; /docs says what to send"
    given = ascii(problem.get("input"))
    return (
        f"{place} is {given if len(given) <= 60 else given[:59] + '…'}: {problem['msg'].removeprefix('Value error, ')}"
    )
