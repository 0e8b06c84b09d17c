"""An index that answers questions while a person waits: nothing is written, no flow is run, what was loaded is kept.

The functions underneath are those of the flows, so that scores are those of ``attribute`` with ``--whitening train``,
or, with a standing query set as background, of ``attribute`` on that set with the question added to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from trackstar.storage import writer
from trackstar.storage.digests import digest_of
from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query, queries_digest, read_queries
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.answers import Answer, Documents, Influence, Ranking, Spread
from trackstar.tasks.asking.completions import MAX_TOKENS, Completion, complete
from trackstar.tasks.asking.corpus_side import CorpusSide
from trackstar.tasks.asking.gradient_answers import GradientAnswers, facts_of, spread_of
from trackstar.tasks.asking.gradient_scan import Found
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.asking.held_documents import HeldDocuments
from trackstar.tasks.asking.held_model import HeldModel
from trackstar.tasks.asking.settings import ASKED_METHODS, AskConfig
from trackstar.tasks.asking.text_answers import TextAnswers, word_shares
from trackstar.tasks.asking.watching import Progress, Watch
from trackstar.tasks.evaluation.evidence import label
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index, read_index
from trackstar.tasks.methods.settings import BM25, DENSE, GRADIENT_METHODS, TRACKSTAR
from trackstar.tasks.models.query_warnings import sentence
from trackstar.tasks.numerics.ranking import Ranked
from trackstar.tasks.report.passages import Token
from trackstar.tasks.scoring.queries import query_gradients
from trackstar.tasks.scoring.rank import damping_of
from trackstar.tasks.scoring.rankings import rank_scored, result_table
from trackstar.tasks.scoring.score_pass import ScoreConfig

FLOAT32_BYTES = 4

Queries = str | Sequence[Query | Mapping[str, Any]]


class _Asked(NamedTuple):
    """A question's own gradient first, that of the contrast subtracted, then those of the standing queries [q d]."""

    query: Query
    contrast: Query | None
    losses: ndarray
    warnings: tuple[str, ...]
    vectors: dict[str, ndarray]


class OpenIndex:
    """An index that is open for questions, from any number of threads.

    The model serves one of them at a time; scans of the store run side by side. While an answer is made, no writer
    removes what the index was made of when it was opened.

    Attributes:
        contents: What the index is made of.
        config: How it was opened.
        digest: Of its index.json as it was when the index was opened.
        memory: What is kept between questions.
    """

    def __init__(self, contents: Index, config: AskConfig) -> None:
        self.contents, self.config = contents, config
        self.digest = digest_of(contents.model_dump(mode="json"))
        self.memory = Memory(config.memory_bytes)
        self._candidates = Candidates(contents.shards, str(contents.path), contents.tombstones)
        self._damping = damping_of(contents, config.damping)
        self._side = CorpusSide(contents, damping=self._damping, memory=self.memory)
        self._documents = HeldDocuments(self._candidates, self.memory)
        self._model = HeldModel(contents)
        self._gradients = GradientAnswers(self._side, self._candidates, self._documents, self._model)
        self._texts = TextAnswers(contents, self._candidates, self.memory, dense_encoder=config.dense_encoder)
        if config.prepare:
            self._side.prepare()

    @property
    def path(self) -> UPath:
        return self.contents.path

    @property
    def num_documents(self) -> int:
        """Those that were not withdrawn."""
        return self._candidates.num_live

    def __repr__(self) -> str:
        return f"<index {self.path} of {self.num_documents:,} documents>"

    def is_current(self) -> bool:
        """Whether the index on disk is still the one that was opened."""
        return digest_of(read_index(str(self.path)).model_dump(mode="json")) == self.digest

    def ask(
        self,
        prompt: str,
        completion: str | None = None,
        *,
        contrast: str | None = None,
        methods: Sequence[str] = (TRACKSTAR,),
        top_k: int = 10,
        background: Queries | None = None,
        mixing_weight: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Find the documents that carry a completion.

        Args:
            completion: With its leading space; by default what the model itself says.
            contrast: Asks about the completion rather than this: the gradient of the difference of their losses.
            methods: Any of ``ASKED_METHODS``.
            top_k: Proponents and opponents of each method; 0 for every document.
            background: Standing queries, or a file of them, whose R_eval is mixed in; without, R_train alone whitens.
            mixing_weight: λ where there is a background; by default where the spectra cross.
            progress: Told how far the answer is.
            cancelled: Asked often; once it says yes, ``Cancelled`` is raised.

        Raises:
            InputError: The question or its settings are not possible, and why.
            Cancelled: ``cancelled`` said yes.
        """
        with writer.reading(self.path):
            watch = Watch(progress, cancelled)
            self._check(methods, background, mixing_weight)
            said = self._said(prompt) if completion is None else None
            asked = self._encode(
                _query(prompt, said.text if said else completion), contrast, self._standing(background)
            )
            score = self._score_config(top_k, has_background=background is not None, mixing_weight=mixing_weight)
            answers = [self._rank(method, asked, score, watch) for method in methods]
            return Answer(
                prompt=prompt,
                completion=asked.query.completion,
                probability=float(np.exp(-asked.losses[0])),
                proponents=tuple(found for answer in answers for found in answer.influences if found.kind == PROPONENT),
                opponents=tuple(found for answer in answers for found in answer.influences if found.kind == OPPONENT),
                index=str(self.path),
                settings={**self._settings(methods, score, answers, said), "warnings": list(asked.warnings)},
                spreads={answer.method: answer.spread for answer in answers if answer.spread is not None},
                contrast=contrast,
                contrast_probability=float(np.exp(-asked.losses[1])) if contrast is not None else None,
                said=said,
            )

    def complete(self, prompt: str, *, max_tokens: int = MAX_TOKENS, to_sentence_end: bool = True) -> Completion:
        """What the model says after a prompt, with the probability of each token."""
        with self._model.engine() as engine:
            return complete(engine, prompt, max_tokens=max_tokens, to_sentence_end=to_sentence_end)

    def documents(self, ids: Sequence[str]) -> Documents:
        """Documents by their ids.

        Raises:
            InputError: An id is that of no document, or of one that was withdrawn.
        """
        with writer.reading(self.path):
            positions = self._documents.positions(ids)
            found = self._documents.at(positions.values())
            return Documents([found[positions[id_]] for id_ in ids])

    def neighbours(self, id_: str, *, count: int = 3) -> Documents:
        """A document with those before and after it in the corpus, as far as its shard has any."""
        with writer.reading(self.path):
            (position,) = self._documents.positions([id_]).values()
            return Documents(list(self._documents.at(self._documents.around(position, count)).values()))

    def rank(
        self, queries: Queries, *, method: str = TRACKSTAR, top_k: int = 10, mixing_weight: float | None = None
    ) -> Ranking:
        """Rank the corpus for several queries at once, R_eval being theirs, as ``attribute`` does."""
        with writer.reading(self.path):
            asked = _queries(queries)
            self._check([method], None, None)
            if method in GRADIENT_METHODS:
                with self._model.engine() as engine:
                    _, _, vectors = query_gradients(engine, asked)
                score = self._score_config(top_k, has_background=len(asked) > 1, mixing_weight=mixing_weight)
                reading = self._gradients.reading(method, vectors, score, Watch())
                ranked = self._gradients.scan(reading, len(asked), method, Watch()).ranked
                settings = {**facts_of(reading), "method": method}
            else:
                parts = [self._texts.scores(method, query, Watch()) for query in asked]
                each = [rank_scored(part, top_k=top_k, kinds=(PROPONENT,))[PROPONENT] for part in parts]
                stacked = Ranked(
                    *(np.concatenate([getattr(r, name) for r in each]) for name in ("scores", "positions"))
                )
                ranked, settings = {PROPONENT: stacked}, {"method": method}
            table = result_table(
                {(method, kind): best for kind, best in ranked.items()},
                query_ids=[query.id for query in asked],
                candidates=self._candidates,
            )
            texts = {d.id: d.text for d in self.documents(table["candidate_id"].unique(maintain_order=True).to_list())}
            text = pl.col("candidate_id").replace_strict(texts, return_dtype=pl.String)
            return Ranking(table.with_columns(text=text), settings)

    def leaders(self, found: Found, *, count: int = 5) -> list[tuple[str, float]]:
        """Id and score of the best documents so far, of the first query of a pass under way."""
        with writer.reading(self.path):
            if PROPONENT not in found.ranked:
                return []
            best = found.ranked[PROPONENT]
            positions = best.positions[0][:count].tolist()
            documents = self._documents.at(positions)
            return [(documents[p].id, float(score)) for p, score in zip(positions, best.scores[0], strict=False)]

    def _said(self, prompt: str) -> Completion:
        said = self.complete(prompt)
        if not said.text.strip():
            raise InputError(f"the model says nothing after {prompt!r}; give a completion")
        return said

    def _standing(self, background: Queries | None) -> tuple[Query, ...]:
        return () if background is None else tuple(_queries(background))

    def _encode(self, query: Query, contrast: str | None, standing: tuple[Query, ...]) -> _Asked:
        other = None if contrast is None else _query(query.prompt, contrast)
        if contrast == query.completion:
            raise InputError(
                f"completion and contrast are both {contrast!r}, which differ in nothing; give another one"
            )
        with self._model.engine() as engine:
            tokens, losses, vectors = query_gradients(engine, [query] if other is None else [query, other])
        if other is not None:
            # ∇ (Loss(completion) − Loss(contrast))
            vectors = {block: rows[[0]] - rows[[1]] for block, rows in vectors.items()}
        if standing:
            more = self._standing_vectors(standing)
            vectors = {block: np.concatenate([rows, more[block]]) for block, rows in vectors.items()}
        warnings = dict.fromkeys(sentence(warning) for of_query in tokens for warning in of_query.warnings)
        return _Asked(query, other, losses, tuple(warnings), vectors)

    def _standing_vectors(self, standing: tuple[Query, ...]) -> dict[str, ndarray]:
        def load() -> dict[str, ndarray]:
            with self._model.engine() as engine:
                return query_gradients(engine, standing)[2]

        num_bytes = FLOAT32_BYTES * len(standing) * sum(self.contents.block_dims.values())
        held = self.memory.keep(("standing", queries_digest(standing)), num_bytes, load)
        return load() if held is None else held

    def _rank(self, method: str, asked: _Asked, score: ScoreConfig, watch: Watch) -> "_MethodAnswer":
        if method not in GRADIENT_METHODS:
            scored = self._texts.scores(method, asked.query, watch)
            ranked = rank_scored(scored, top_k=score.top_k, kinds=(PROPONENT,))
            return _MethodAnswer(method, self._influences(method, asked, ranked, {}), None, {})
        reading = self._gradients.reading(method, asked.vectors, score, watch)
        found = self._gradients.scan(reading, 1, method, watch)
        tokens = self._gradients.tokens(method, found.ranked, reading, watch)
        influences = self._influences(method, asked, found.ranked, tokens)
        return _MethodAnswer(method, influences, spread_of(found), facts_of(reading))

    def _influences(
        self, method: str, asked: _Asked, ranked: Mapping[str, Ranked], tokens: Mapping[int, tuple[Token, ...]]
    ) -> list[Influence]:
        documents = self._documents.at(p for best in ranked.values() for p in best.positions[0])
        stating = _stating(asked.query, {document.id: document.text for document in documents.values()})
        lexical = self._texts.bm25(asked.query) if method == BM25 else None
        return [
            Influence(
                method=method,
                kind=kind,
                rank=rank,
                score=float(score),
                document=documents[position],
                tokens=word_shares(lexical, documents[position].text) if lexical else tokens.get(position, ()),
                states_answer=documents[position].id in stating,
            )
            for kind, best in ranked.items()
            for rank, (position, score) in enumerate(
                zip(best.positions[0].tolist(), best.scores[0], strict=True), start=1
            )
        ]

    def _check(self, methods: Sequence[str], background: Queries | None, mixing_weight: float | None) -> None:
        for method in methods:
            if method not in ASKED_METHODS:
                raise InputError(
                    f"{method!r} cannot be asked at once; choose among {', '.join(ASKED_METHODS)}, or run "
                    "`trackstar compare`, which has all methods"
                )
        if not methods or len(set(methods)) < len(methods):
            raise InputError(f"the methods are {', '.join(methods) or 'none'}; name at least one, and each once")
        if DENSE in methods and self.config.dense_encoder is None:
            raise InputError("the method dense needs a sentence encoder; open the index with dense_encoder=DIR")
        if mixing_weight is not None and background is None:
            raise InputError(
                f"the mixing weight is {mixing_weight:g}, and one question alone has no R_eval worth mixing in; give a "
                "background of standing queries"
            )

    def _score_config(self, top_k: int, *, has_background: bool, mixing_weight: float | None) -> ScoreConfig:
        whitening = "mixed" if has_background else "train"
        return ScoreConfig(
            whitening=whitening if self._side.has_curvature else "none",
            mixing_weight="auto" if mixing_weight is None else mixing_weight,
            damping=self._damping,
            top_k=top_k,
        )

    def _settings(
        self, methods: Sequence[str], score: ScoreConfig, answers: "Sequence[_MethodAnswer]", said: Completion | None
    ) -> dict[str, Any]:
        return {
            "methods": list(methods),
            "top_k": score.top_k,
            "checkpoint": self.contents.engine.checkpoint.name,
            "num_documents": self.num_documents,
            "completed_by_model": said is not None,
            "scores": {
                answer.method: {**answer.facts, "spread": answer.spread.to_dict()}
                for answer in answers
                if answer.spread is not None
            },
        }


class _MethodAnswer(NamedTuple):
    method: str
    influences: list[Influence]
    spread: Spread | None
    facts: dict[str, Any]


def open_index(path: str, config: AskConfig | None = None) -> OpenIndex:
    """Open a finished index for questions; the model is loaded when the first is asked.

    Raises:
        MissingError: There is no finished index.
    """
    with writer.reading(path):
        return OpenIndex(read_index(path), config or AskConfig())


def _query(prompt: str, completion: str) -> Query:
    if not completion.strip():
        raise InputError(f"the completion is {completion!r}; give what the model says after the prompt")
    return Query(id="question", prompt=prompt, completion=completion)


def _queries(queries: Queries) -> list[Query]:
    if isinstance(queries, str):
        return read_queries(queries)
    return [query if isinstance(query, Query) else Query.model_validate(query) for query in queries]


def _stating(query: Query, texts: Mapping[str, str]) -> frozenset[str]:
    """The documents whose text has the completion in it, as whole words."""
    asked = Query(id=query.id, prompt=query.prompt, completion=query.completion, answer_aliases=(query.completion,))
    (labelled,) = label([asked], texts.items())
    return frozenset(labelled.relevant_ids or ())
