"""The result table, arranged as the report's template reads it: query by query, a column a method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from trackstar.storage.results import OPPONENT, PROPONENT, QueryLike
from trackstar.tasks.numerics.histogram import share_below
from trackstar.tasks.report.data import Prediction, ReportData
from trackstar.tasks.report.passages import Passage, Token, Words, common_words, passage
from trackstar.tasks.report.plots import HistogramPlot, histogram_plot

PROMPT_CHARACTERS = 600
FEATURED = ("trackstar", "bm25", "dense")  # side by side, whatever else is compared
FULL_COLUMNS = 4  # methods beyond these show their first few passages only
FEW_PROPONENTS = 3
SHOWN_EVIDENCE = 5  # evidence that does not influence, per query

TOKEN_COLUMNS = ("query_id", "candidate_id", "start", "stop", "share")

Key = tuple[str, str]  # query id, and a method or a candidate id


@dataclass(frozen=True)
class Hit:
    """One retrieved passage of one method."""

    rank: int
    score: float
    candidate_id: str
    passage: Passage
    is_evidence: bool
    change: float | None  # of the completion's probability, by tail-patch
    elsewhere: tuple[tuple[str, int], ...]  # the other methods that retrieved it, with their ranks


@dataclass(frozen=True)
class Column:
    """What one method has to say about one query."""

    method: str
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    first_evidence: int | None  # rank
    num_ranks: int


@dataclass(frozen=True)
class Stated:
    """A passage that states the fact and is not among a method's proponents that are shown."""

    candidate_id: str
    passage: Passage
    rank: int | None  # None: below all ranks that are known
    score: float | None
    below: float | None  # at least this share of all candidates scores lower
    elsewhere: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Disagreement:
    """Where influence and evidence part: what influences and does not state, and what states and does not influence."""

    method: str
    depth: int
    influential: tuple[Hit, ...]
    stated: tuple[Stated, ...]
    num_more: int  # evidence that is left out
    num_absent: int  # evidence that is not in the corpus


@dataclass(frozen=True)
class QueryView:
    number: int
    query: QueryLike
    prompt: str
    prediction: Prediction
    columns: tuple[Column, ...]
    histogram: HistogramPlot | None
    disagreement: Disagreement | None


def ordered_methods(proponents: pl.DataFrame) -> list[str]:
    """The methods of a result table in their order, those that are always set side by side first."""
    methods = proponents["method"].unique(maintain_order=True).to_list()
    return sorted(methods, key=lambda method: FEATURED.index(method) if method in FEATURED else len(FEATURED))


def shown_candidates(proponents: pl.DataFrame, queries: Sequence[QueryLike]) -> set[str]:
    """The candidates whose texts a report with the usual limits may show."""
    data = ReportData(model="", corpus="", queries=queries, proponents=proponents, texts={})
    evidence = {name for query in queries for name in query.relevant_ids or ()}
    return evidence | set(_shown(data)["candidate_id"].unique())


def query_views(data: ReportData) -> list[QueryView]:
    """Every query with one column per method, in the order of the queries."""
    return list(_Views(data).of_queries())


class _Views:
    """What is looked up once for all queries."""

    def __init__(self, data: ReportData) -> None:
        proponents = data.proponents.filter(pl.col("kind") == PROPONENT)
        shown = _annotated(_shown(data), proponents=proponents, data=data)
        explanation = data.explanation
        self._data, self._methods = data, ordered_methods(data.proponents)
        self._common = common_words(data.texts[name] for name in shown["candidate_id"].unique(maintain_order=True))
        self._none = shown.clear()
        self._tables = shown.sort("rank").partition_by("query_id", as_dict=True, maintain_order=True)
        self._ranks = _evidence_ranks(proponents, data.queries)
        self._depths: dict[Key, int] = _by_key(proponents.group_by("query_id", "method").len())
        self._tokens = _read(explanation and explanation.tokens, _tokens)
        self._histograms = _read(explanation and explanation.histograms, _rows)
        self._scores = _read(explanation and explanation.evidence, _by_key)

    def of_queries(self) -> Iterator[QueryView]:
        for number, query in enumerate(self._data.queries, start=1):
            words = Words.of(query.prompt, query.completion, common=self._common)
            columns = self._columns(query, words)
            yield QueryView(
                number=number,
                query=query,
                prompt=_end_of(query.prompt),
                prediction=self._data.predictions.get(query.id, Prediction()),
                columns=columns,
                histogram=self._histogram(query),
                disagreement=self._disagreement(query, words, columns),
            )

    def _columns(self, query: QueryLike, words: Words) -> tuple[Column, ...]:
        hits = self._hits(query, words)
        return tuple(
            Column(
                method=method,
                proponents=tuple(hits.get((PROPONENT, method), ())),
                opponents=tuple(hits.get((OPPONENT, method), ())),
                first_evidence=min(
                    (ranks[method] for ranks in self._ranks.get(query.id, {}).values() if method in ranks), default=None
                ),
                num_ranks=self._depths.get((query.id, method), 0),
            )
            for method in self._methods
        )

    def _hits(self, query: QueryLike, words: Words) -> dict[tuple[str, str], list[Hit]]:
        """(kind, method) to the passages of one query, by rank."""
        relevant = frozenset(query.relevant_ids or ())
        hits: dict[tuple[str, str], list[Hit]] = {}
        for row in self._tables.get((query.id,), self._none).iter_rows(named=True):
            name = row["candidate_id"]
            hit = Hit(
                rank=row["rank"],
                score=row["score"],
                candidate_id=name,
                passage=self._passage(query, name, words, is_read=self._is_explained(row)),
                is_evidence=name in relevant,
                change=row["change"],
                elsewhere=tuple(zip(row["other"] or (), row["other_rank"] or (), strict=True)),
            )
            hits.setdefault((row["kind"], row["method"]), []).append(hit)
        return hits

    def _is_explained(self, row: Mapping[str, Any]) -> bool:
        explanation = self._data.explanation
        return explanation is not None and row["kind"] == PROPONENT and row["method"] == explanation.method

    def _passage(self, query: QueryLike, candidate_id: str, words: Words, *, is_read: bool) -> Passage:
        tokens = self._tokens.get((query.id, candidate_id), ()) if is_read else ()
        return passage(self._data.texts[candidate_id], words, tokens)

    def _histogram(self, query: QueryLike) -> HistogramPlot | None:
        row = self._histograms.get(query.id)
        if row is None:
            return None
        evidence = [self._scores.get((query.id, name)) for name in query.relevant_ids or ()]
        known = [score for score in evidence if score is not None]
        return histogram_plot(row["counts"], low=row["low"], high=row["high"], evidence=known)

    def _disagreement(self, query: QueryLike, words: Words, columns: Sequence[Column]) -> Disagreement | None:
        """Of the explained method, or else of the first one; None where the query has no evidence."""
        explanation = self._data.explanation
        method = explanation.method if explanation else self._methods[0]
        column = next((column for column in columns if column.method == method), None)
        if not query.relevant_ids or column is None:
            return None
        shown = {hit.candidate_id for hit in column.proponents}
        present = [name for name in query.relevant_ids if name in self._data.texts]
        missed = [name for name in present if name not in shown]
        stated = sorted((self._stated(query, name, words, method) for name in missed), key=_by_rank_and_score)
        return Disagreement(
            method=method,
            depth=len(column.proponents),
            influential=tuple(hit for hit in column.proponents if not hit.is_evidence),
            stated=tuple(stated[:SHOWN_EVIDENCE]),
            num_more=max(0, len(stated) - SHOWN_EVIDENCE),
            num_absent=len(query.relevant_ids) - len(present),
        )

    def _stated(self, query: QueryLike, candidate_id: str, words: Words, method: str) -> Stated:
        ranks = self._ranks.get(query.id, {}).get(candidate_id, {})
        score, row = self._scores.get((query.id, candidate_id)), self._histograms.get(query.id)
        is_placed = score is not None and row is not None
        return Stated(
            candidate_id=candidate_id,
            passage=self._passage(query, candidate_id, words, is_read=False),
            rank=ranks.get(method),
            score=score,
            below=share_below(row["counts"], score, low=row["low"], high=row["high"]) if is_placed else None,
            elsewhere=tuple((name, rank) for name, rank in ranks.items() if name != method),
        )


def _read(table: pl.DataFrame | None, reader: Callable[[pl.DataFrame], dict]) -> dict[Any, Any]:
    return {} if table is None else reader(table)


def _by_rank_and_score(stated: Stated) -> tuple[float, float]:
    return (
        float("inf") if stated.rank is None else stated.rank,
        float("inf") if stated.score is None else -stated.score,
    )


def _shown(data: ReportData) -> pl.DataFrame:
    """The first proponents and opponents of each query and method; fewer of the methods beyond the first columns."""
    full = ordered_methods(data.proponents)[:FULL_COLUMNS]
    limits = {PROPONENT: data.num_proponents, OPPONENT: data.num_opponents}
    few = {PROPONENT: min(FEW_PROPONENTS, data.num_proponents), OPPONENT: 0}
    kind = pl.col("kind")
    limit = pl.when(pl.col("method").is_in(full)).then(kind.replace_strict(limits)).otherwise(kind.replace_strict(few))
    return data.proponents.filter(pl.col("rank") <= limit)


def _annotated(shown: pl.DataFrame, *, proponents: pl.DataFrame, data: ReportData) -> pl.DataFrame:
    """The shown rows with the tail-patch of each and the methods and ranks at which others retrieved it."""
    place = ["query_id", "candidate_id"]
    others = (
        shown.select(*place, "method")
        .unique(maintain_order=True)
        .join(proponents.select(*place, other="method", other_rank="rank"), on=place, maintain_order="left_right")
        .filter(pl.col("method") != pl.col("other"))
        .filter((pl.col("other_rank") <= data.num_proponents) | pl.col("other").is_in(FEATURED))
        .group_by(*place, "method", maintain_order=True)
        .agg("other", "other_rank")
    )
    shown = shown.join(others, on=[*place, "method"], how="left", maintain_order="left")
    if data.tail_patch is None:
        return shown.with_columns(change=pl.lit(None, dtype=pl.Float64))
    changes = data.tail_patch.select(*place, "method", change="probability_change")
    return shown.join(changes, on=[*place, "method"], how="left", maintain_order="left")


def _evidence_ranks(proponents: pl.DataFrame, queries: Sequence[QueryLike]) -> dict[str, dict[str, dict[str, int]]]:
    """Query to evidence to method to rank, where it has one."""
    pairs = [(query.id, name) for query in queries for name in query.relevant_ids or ()]
    schema = {"query_id": pl.String, "candidate_id": pl.String}
    relevant = pl.DataFrame(pairs, schema=schema, orient="row")
    ranks: dict[str, dict[str, dict[str, int]]] = {}
    found = proponents.join(relevant, on=list(schema), maintain_order="left").select(*schema, "method", "rank")
    for query_id, candidate_id, method, rank in found.iter_rows():
        ranks.setdefault(query_id, {}).setdefault(candidate_id, {})[method] = rank
    return ranks


def _by_key(table: pl.DataFrame) -> dict[Key, Any]:
    return {(query_id, second): value for query_id, second, value in table.iter_rows()}


def _rows(table: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in table.iter_rows(named=True)}


def _tokens(table: pl.DataFrame) -> dict[Key, list[Token]]:
    tokens: dict[Key, list[Token]] = {}
    for query_id, candidate_id, start, stop, share in table.select(*TOKEN_COLUMNS).iter_rows():
        tokens.setdefault((query_id, candidate_id), []).append(Token(start, stop, share))
    return tokens


def _end_of(prompt: str) -> str:
    """The prompt, or of a long one the end, which the completion continues."""
    return prompt if len(prompt) <= PROMPT_CHARACTERS else "… " + prompt[-PROMPT_CHARACTERS:]
