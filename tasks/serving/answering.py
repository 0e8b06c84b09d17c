"""From a request to an answer: handed in at a desk, waited for while the client does, and told in JSON."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from time import monotonic
from typing import Any

from fastapi import Request, Response

from trackstar.storage.errors import InputError, StorageError
from trackstar.tasks.asking.gradient_scan import Cancelled
from trackstar.tasks.serving.desk import Busy, Desk, Ticket
from trackstar.tasks.serving.metrics import Metrics

LOG = logging.getLogger(__name__)
HEARTBEAT_S = 2.0  # between two signs of life of a stream
CLIENT_GONE = 499  # as nginx writes it; nobody reads it


class Problem(Exception):
    """What a client is told instead of an answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    def response(self) -> Response:
        response = as_json({"error": self.sentence}, self.status)
        if self.status == 429:
            response.headers["retry-after"] = "2"
        return response


def as_json(value: Any, status: int = 200) -> Response:
    """In ASCII, so that no text of a corpus can be one that UTF-8 has not."""
    return Response(json.dumps(value), status, media_type="application/json")


def problem_of(error: BaseException) -> Problem:
    """What went wrong, in a sentence."""
    match error:
        case Problem():
            return error
        case InputError():
            return Problem(400, str(error))
        case Busy():
            return Problem(429, "as many questions wait as may; ask again in a moment")
        case Cancelled():
            return Problem(504, "the question took too long and was given up; ask for fewer methods, or again")
        case asyncio.CancelledError() | GeneratorExit():
            return Problem(CLIENT_GONE, "the client went away")
        case CancelledError():
            return Problem(503, "the server is stopping; ask again once it is back")
        case StorageError() | OSError():
            LOG.warning("%s", error)
            return Problem(503, f"{error}; ask again in a moment, the index may just be replaced")
    LOG.error("a question failed", exc_info=error)
    return Problem(500, "something failed that nobody foresaw; the server's log says what")


@contextmanager
def measured(metrics: Metrics, what: str) -> Iterator[None]:
    """Count how a request ended, and turn what went wrong into a problem."""
    started, status = monotonic(), 200
    try:
        yield
    except BaseException as error:
        problem = problem_of(error)
        status = problem.status
        if isinstance(error, Exception):
            raise problem from error
        raise
    finally:
        metrics.answers.labels(what, str(status)).inc()
        metrics.seconds.labels(what).observe(monotonic() - started)


async def answered(desk: Desk, request: Request, work: Callable[[Ticket], Any]) -> Any:
    """The result of work, which is stopped when the client goes away or its time is over."""
    ticket = desk.take(work)
    waits = [asyncio.ensure_future(ticket.done.wait()), asyncio.ensure_future(_gone(request))]
    try:
        await asyncio.wait(waits, timeout=ticket.seconds_left, return_when=asyncio.FIRST_COMPLETED)
        if ticket.done.is_set():
            return ticket.future.result()
        if waits[1].done():
            raise Problem(CLIENT_GONE, "the client went away")
        raise Cancelled
    finally:
        ticket.stop()
        for wait in waits:
            wait.cancel()


class Board:
    """The latest news of work under way: what is not read in time is replaced by what is newer."""

    def __init__(self) -> None:
        self.news, self.changed = None, asyncio.Event()

    def write(self, news: Any) -> None:
        self.news = news
        self.changed.set()


async def streamed(ticket: Ticket, board: Board, request: Request) -> AsyncIterator[bytes]:
    """Server-sent events: ``progress`` as often as it is read, then ``answer`` or ``error``."""
    try:
        while not ticket.done.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (board.changed, ticket.done)]
            await asyncio.wait(
                waits, timeout=min(HEARTBEAT_S, ticket.seconds_left), return_when=asyncio.FIRST_COMPLETED
            )
            for wait in waits:
                wait.cancel()
            if await request.is_disconnected():
                raise Problem(CLIENT_GONE, "the client went away")
            if not ticket.seconds_left and not ticket.done.is_set():
                raise Cancelled
            if board.changed.is_set():
                board.changed.clear()
                yield event("progress", board.news)
            elif not ticket.done.is_set():
                yield b": waiting\n\n"
        yield event("answer", ticket.future.result())
    finally:
        ticket.stop()


def event(kind: str, data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
