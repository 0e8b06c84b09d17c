"""An index that answers questions while a person waits: nothing is written, no flow is run, what was loaded is kept.

The functions underneath are those of the flows, so that scores are those of ``attribute`` with ``--whitening train``,
or, with a standing query set as background, of ``attribute`` on that set with the question added to it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.manifest import digest_of
from trackstar.storage.queries import Query, queries_digest, read_queries
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.answers import Answer, Documents, Influence, Ranking, Spread
from trackstar.tasks.asking.completions import MAX_TOKENS, Completion, complete
from trackstar.tasks.asking.corpus_side import CorpusSide
from trackstar.tasks.asking.gradient_scan import Cancelled, Found, Reading, read_queries_by, scan
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.asking.held_documents import HeldDocuments
from trackstar.tasks.asking.held_embeddings import HeldEmbeddings
from trackstar.tasks.asking.held_words import HeldWords
from trackstar.tasks.asking.token_shares import document_shares, predicted_tokens
from trackstar.tasks.evaluation.evidence import label
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index, read_index
from trackstar.tasks.methods.bm25 import search_text
from trackstar.tasks.methods.registry import BM25, DENSE, GRADIENT_METHODS, TRACKSTAR
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.numerics.bm25 import WORD, Bm25
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens
from trackstar.tasks.numerics.ranking import Ranked
from trackstar.tasks.numerics.token_influence import candidate_norms, query_readout
from trackstar.tasks.report.passages import Token
from trackstar.tasks.report.results import require_same_checkpoint
from trackstar.tasks.scoring.queries import query_gradients
from trackstar.tasks.scoring.rankings import rank_scored, result_table
from trackstar.tasks.scoring.score_pass import ScoreConfig

ASKED_METHODS = (*(name for name, preset in GRADIENT_METHODS.items() if preset.is_corrected), BM25, DENSE)
TOKENS_READ = 50  # documents at either end of a ranking whose tokens are read
FLOAT32_BYTES = 4

Queries = str | Sequence[Query | Mapping[str, Any]]


class AskConfig(BaseModel):
    """How an index is opened for questions."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Ask")

    damping: float = Field(0.1, ge=0, description="Added to R_train, relative to its mean eigenvalue.")
    memory_bytes: int = Field(2 << 30, ge=0, description="What is kept between questions: factors, norms, gradients.")
    dense_encoder: str | None = Field(None, description="Directory of a local sentence encoder, for the method dense.")
    prepare: bool = Field(False, description="Write the factors and norms that the index lacks, once.")


class Progress(NamedTuple):
    """How far an answer is.

    Attributes:
        stage: "norms" (a first question to an index without them), "scores" or "tokens".
        method: Whose scores.
        done, total: Documents; shards and blocks while norms are measured.
        found: What the pass has found so far; ``OpenIndex.leaders`` shows its documents.
    """

    stage: str
    method: str
    done: int
    total: int
    found: Found | None = None


class _Asked(NamedTuple):
    """A question's own gradient first, that of the contrast subtracted, then those of the standing queries [q d]."""

    query: Query
    contrast: Query | None
    losses: ndarray
    vectors: dict[str, ndarray]


class _Watch(NamedTuple):
    """Who looks on, and whether anybody still does."""

    progress: Callable[[Progress], None] | None
    cancelled: Callable[[], bool] | None

    def tell(self, progress: Progress) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("the question was cancelled")
        if self.progress is not None:
            self.progress(progress)


class OpenIndex:
    """An index that is open for questions, from any number of threads.

    The model serves one of them at a time; scans of the store run side by side.

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
        self._side = CorpusSide(contents, damping=config.damping, memory=self.memory)
        self._documents = HeldDocuments(self._candidates, self.memory)
        self._model_lock, self._words_lock = threading.RLock(), threading.Lock()
        self._engine: Engine | None = None
        self._reader: PredictedTokens | None = None
        self._words: HeldWords | None = None
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
        watch = _Watch(progress, cancelled)
        self._check(methods, background, mixing_weight)
        said = self._said(prompt) if completion is None else None
        asked = self._encode(_query(prompt, said.text if said else completion), contrast, self._standing(background))
        score = self._score_config(top_k, has_background=background is not None, mixing_weight=mixing_weight)
        answers = [self._rank(method, asked, score, watch) for method in methods]
        return Answer(
            prompt=prompt,
            completion=asked.query.completion,
            probability=float(np.exp(-asked.losses[0])),
            proponents=tuple(found for answer in answers for found in answer.influences if found.kind == PROPONENT),
            opponents=tuple(found for answer in answers for found in answer.influences if found.kind == OPPONENT),
            index=str(self.path),
            settings=self._settings(methods, score, answers, said),
            spreads={answer.method: answer.spread for answer in answers if answer.spread is not None},
            contrast=contrast,
            contrast_probability=float(np.exp(-asked.losses[1])) if contrast is not None else None,
            said=said,
        )

    def complete(self, prompt: str, *, max_tokens: int = MAX_TOKENS, to_sentence_end: bool = True) -> Completion:
        """What the model says after a prompt, with the probability of each token."""
        with self._model() as engine:
            return complete(engine, prompt, max_tokens=max_tokens, to_sentence_end=to_sentence_end)

    def documents(self, ids: Sequence[str]) -> Documents:
        """Documents by their ids.

        Raises:
            InputError: An id is that of no document, or of one that was withdrawn.
        """
        positions = self._documents.positions(ids)
        found = self._documents.at(positions.values())
        return Documents([found[positions[id_]] for id_ in ids])

    def neighbours(self, id_: str, *, count: int = 3) -> Documents:
        """A document with those before and after it in the corpus, as far as its shard has any."""
        (position,) = self._documents.positions([id_]).values()
        return Documents(list(self._documents.at(self._documents.around(position, count)).values()))

    def rank(
        self, queries: Queries, *, method: str = TRACKSTAR, top_k: int = 10, mixing_weight: float | None = None
    ) -> Ranking:
        """Rank the corpus for several queries at once, R_eval being theirs, as ``attribute`` does."""
        asked = _queries(queries)
        self._check([method], None, None)
        if method in GRADIENT_METHODS:
            with self._model() as engine:
                _, _, vectors = query_gradients(engine, asked)
            score = self._score_config(top_k, has_background=len(asked) > 1, mixing_weight=mixing_weight)
            reading = read_queries_by(self._side, vectors, _preset(method, score))
            ranked = self._scan(reading, len(asked), method, _Watch(None, None)).ranked
            settings = {**_facts(reading), "method": method}
        else:
            parts = [self._lexical(method, query, _Watch(None, None)) for query in asked]
            each = [rank_scored(part, top_k=top_k, kinds=(PROPONENT,))[PROPONENT] for part in parts]
            stacked = Ranked(*(np.concatenate([getattr(r, name) for r in each]) for name in ("scores", "positions")))
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
        if PROPONENT not in found.ranked:
            return []
        best = found.ranked[PROPONENT]
        positions = best.positions[0][:count].tolist()
        documents = self._documents.at(positions)
        return [(documents[p].id, float(score)) for p, score in zip(positions, best.scores[0], strict=False)]

    # one question, step by step

    def _said(self, prompt: str) -> Completion:
        said = self.complete(prompt)
        if not said.text.strip():
            raise InputError(f"the model says nothing after {prompt!r}; give a completion")
        return said

    def _standing(self, background: Queries | None) -> tuple[Query, ...]:
        return () if background is None else tuple(_queries(background))

    def _encode(self, query: Query, contrast: str | None, standing: tuple[Query, ...]) -> _Asked:
        other = None if contrast is None else _query(query.prompt, contrast)
        with self._model() as engine:
            _, losses, vectors = query_gradients(engine, [query] if other is None else [query, other])
        if other is not None:
            # ∇ (Loss(completion) − Loss(contrast))
            vectors = {block: rows[[0]] - rows[[1]] for block, rows in vectors.items()}
        if standing:
            more = self._standing_vectors(standing)
            vectors = {block: np.concatenate([rows, more[block]]) for block, rows in vectors.items()}
        return _Asked(query, other, losses, vectors)

    def _standing_vectors(self, standing: tuple[Query, ...]) -> dict[str, ndarray]:
        def load() -> dict[str, ndarray]:
            with self._model() as engine:
                return query_gradients(engine, standing)[2]

        num_bytes = FLOAT32_BYTES * len(standing) * sum(self.contents.block_dims.values())
        held = self.memory.keep(("standing", queries_digest(standing)), num_bytes, load)
        return load() if held is None else held

    def _rank(self, method: str, asked: _Asked, score: ScoreConfig, watch: _Watch) -> "_MethodAnswer":
        if method not in GRADIENT_METHODS:
            scored = self._lexical(method, asked.query, watch)
            ranked = rank_scored(scored, top_k=score.top_k, kinds=(PROPONENT,))
            return _MethodAnswer(method, self._influences(method, asked, ranked, {}), None, {})
        self._measure_norms(method, score, watch)
        reading = read_queries_by(self._side, asked.vectors, _preset(method, score))
        found = self._scan(reading, 1, method, watch)
        spread = Spread.of(found.sums, np.concatenate(found.sample), background_best=found.best[1:].tolist())
        tokens = self._tokens(method, found.ranked, reading, watch)
        return _MethodAnswer(method, self._influences(method, asked, found.ranked, tokens), spread, _facts(reading))

    def _measure_norms(self, method: str, score: ScoreConfig, watch: _Watch) -> None:
        def advance(done: int, total: int) -> None:
            watch.tell(Progress("norms", method, done, total))

        self._side.compute_norms(whitened=_preset(method, score).whitening != "none", advance=advance)

    def _scan(self, reading: Reading, num_ranked: int, method: str, watch: _Watch) -> Found:
        done = 0

        def advance(count: int, found: Found) -> None:
            nonlocal done
            done += count
            watch.tell(Progress("scores", method, done, self._candidates.num_live, found))

        return scan(self._side, self._candidates, reading, num_ranked=num_ranked, advance=advance)

    def _lexical(self, method: str, query: Query, watch: _Watch) -> Iterator[tuple[ndarray, ndarray]]:
        """Positions and scores by a method that reads texts, a shard at a time."""
        if method == BM25:
            parts = self._held_words().scores(self._bm25(query))
        else:
            encoder = HeldEmbeddings(self.contents, self.config.dense_encoder, self.memory)
            parts = encoder.scores(search_text(query), self._candidates)
        done = 0
        for positions, scores in parts:
            yield positions, scores
            done += len(positions)
            watch.tell(Progress("scores", method, done, self._candidates.num_live))

    def _influences(
        self, method: str, asked: _Asked, ranked: Mapping[str, Ranked], tokens: Mapping[int, tuple[Token, ...]]
    ) -> list[Influence]:
        documents = self._documents.at(p for best in ranked.values() for p in best.positions[0])
        stating = _stating(asked.query, {document.id: document.text for document in documents.values()})
        lexical = self._bm25(asked.query) if method == BM25 else None
        return [
            Influence(
                method=method,
                kind=kind,
                rank=rank,
                score=float(score),
                document=documents[position],
                tokens=_word_shares(lexical, documents[position].text) if lexical else tokens.get(position, ()),
                states_answer=documents[position].id in stating,
            )
            for kind, best in ranked.items()
            for rank, (position, score) in enumerate(
                zip(best.positions[0].tolist(), best.scores[0], strict=True), start=1
            )
        ]

    def _tokens(
        self, method: str, ranked: Mapping[str, Ranked], reading: Reading, watch: _Watch
    ) -> dict[int, tuple[Token, ...]]:
        """The shares of the tokens of the documents at either end, by position."""
        positions = sorted({p for best in ranked.values() for p in best.positions[0][:TOKENS_READ].tolist()})
        watch.tell(Progress("tokens", method, 0, len(positions)))
        texts = [document.text for document in self._documents.at(positions).values()]
        readouts = {
            block: query_readout(basis, [0], mixing_weight=reading.mixing_weight)
            for block, basis in reading.bases.items()
        }
        with self._model() as engine:
            self._reader = self._reader or predicted_tokens(engine, self.contents.engine)
            shares = document_shares(
                self._reader,
                engine,
                texts,
                {block: w[0] for block, (w, _) in readouts.items()},
                token_budget=self.contents.engine.model.token_budget,
            )
            norms = self._norms(engine, positions, texts, reading)
        q_norm = sum(norm[0] for _, norm in readouts.values())
        divisors = np.sqrt(norms * q_norm) if reading.config.unit_norm else np.ones(len(positions))
        return {
            position: tuple(Token(start, stop, share / divisor) for start, stop, share in of_text)
            for position, of_text, divisor in zip(positions, shares, divisors.tolist(), strict=True)
        }

    def _norms(self, engine: Engine, positions: Sequence[int], texts: Sequence[str], reading: Reading) -> ndarray:
        """φ_mᵀ R^-1 φ_m of some documents, all blocks together."""
        psi_norms = np.stack([self._psi_norms(position, reading) for position in positions])
        if not reading.mixing_weight:
            return psi_norms.sum(axis=1)
        ids = engine.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        _, vectors = engine.gradients(ids, first_targets=[1] * len(ids))
        return sum(
            candidate_norms(vectors[block], of_block, basis, mixing_weight=reading.mixing_weight)
            for (block, basis), of_block in zip(reading.bases.items(), psi_norms.T, strict=True)
        )

    def _psi_norms(self, position: int, reading: Reading) -> ndarray:
        path, row = self._documents.place(position)
        return self._side.norms(path, whitened=reading.is_whitened)[0][row]

    # what is loaded once

    @contextmanager
    def _model(self) -> Iterator[Engine]:
        """The model, to one user at a time: hooks and activations belong to it, not to a thread."""
        with self._model_lock:
            if self._engine is None:
                require_same_checkpoint(self.contents)
                self._engine = Engine(self.contents.engine)
            yield self._engine

    def _held_words(self) -> HeldWords:
        with self._words_lock:
            self._words = self._words or HeldWords(self._candidates, self.memory)
            return self._words

    def _bm25(self, query: Query) -> Bm25:
        return Bm25(self._held_words().counts, [search_text(query)])

    # settings

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
            damping=self.config.damping,
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
    return OpenIndex(read_index(path), config or AskConfig())


def _query(prompt: str, completion: str) -> Query:
    if not completion.strip():
        raise InputError(f"the completion is {completion!r}; give what the model says after the prompt")
    return Query(id="question", prompt=prompt, completion=completion)


def _queries(queries: Queries) -> list[Query]:
    if isinstance(queries, str):
        return read_queries(queries)
    return [query if isinstance(query, Query) else Query.model_validate(query) for query in queries]


def _preset(method: str, score: ScoreConfig) -> ScoreConfig:
    """The score settings of a gradient method."""
    changes = GRADIENT_METHODS[method].changes
    if changes.get("whitening") == "mixed" and score.whitening != "mixed":
        raise InputError(f"the method {method} mixes in R_eval, which one question has not; give a background")
    if score.whitening == "none" and changes.get("whitening", "none") == "train":
        raise InputError(f"the method {method} whitens by R_train, which the index does not have; use no_whitening")
    return ScoreConfig.model_validate({**score.model_dump(), **changes})


def _facts(reading: Reading) -> dict[str, Any]:
    config = reading.config
    return {
        "whitening": config.whitening,
        "mixing_weight": reading.mixing_weight,
        "damping": config.damping,
        "unit_norm": config.unit_norm,
    }


def _stating(query: Query, texts: Mapping[str, str]) -> frozenset[str]:
    """The documents whose text has the completion in it, as whole words."""
    asked = Query(id=query.id, prompt=query.prompt, completion=query.completion, answer_aliases=(query.completion,))
    (labelled,) = label([asked], texts.items())
    return frozenset(labelled.relevant_ids or ())


def _word_shares(bm25: Bm25, text: str) -> tuple[Token, ...]:
    """The words of the question that a text has, and what each occurrence adds to its score."""
    by_word = bm25.word_scores(text)
    found = [(match, match[0].lower()) for match in WORD.finditer(text)]
    counts: dict[str, int] = {}
    for _, word in found:
        counts[word] = counts.get(word, 0) + 1
    return tuple(
        Token(match.start(), match.end(), by_word[word] / counts[word]) for match, word in found if word in by_word
    )
