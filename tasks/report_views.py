"""The result table and the metrics, arranged as the report's template reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from storage.results import OPPONENT, PROPONENT, QueryLike
from tasks.evaluation import TAIL_PATCH, Estimate, Metrics
from tasks.passages import Passage, Words, common_words, passage
from tasks.plots import Axis, shared_axis
from tasks.report_data import Prediction, ReportData

PROMPT_CHARACTERS = 600

METRIC_TEXTS = {
    "mrr": ("MRR", "mean of 1 / rank of the first passage that states the fact; 0 where none was retrieved"),
    "hit_at_10": ("Hit@10", "share of queries with a passage that states the fact among the first ten"),
    "recall_at_10": ("Recall@10", "share of the passages that state the fact found among the first ten"),
    "precision_at_10": ("Precision@10", "share of the first ten that state the fact"),
    TAIL_PATCH: ("Tail-patch", "change of the completion’s probability after one training step on a proponent"),
}

Key = tuple[str, str]  # query id, method


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
class QueryView:
    number: int
    query: QueryLike
    prompt: str
    prediction: Prediction
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class MetricColumn:
    """One metric of all methods, drawn on one axis."""

    name: str
    label: str
    explanation: str
    axis: Axis
    estimates: Mapping[str, Estimate]
    best: frozenset[str]


def metric_columns(metrics: Metrics) -> list[MetricColumn]:
    """The metrics that any method has, the well-known first; higher is better in all of them."""
    present = dict.fromkeys(name for estimates in metrics.methods.values() for name in estimates)
    names = [name for name in METRIC_TEXTS if name in present] + [name for name in present if name not in METRIC_TEXTS]
    return [_metric_column(name, metrics) for name in names]


def query_views(data: ReportData, *, methods: Sequence[str]) -> list[QueryView]:
    """Every query with one column per method, in the order of the queries."""
    proponents = data.proponents.filter(pl.col("kind") == PROPONENT)
    shown = _annotated(_shown(data), proponents=proponents, data=data)
    common = common_words(data.texts[name] for name in shown["candidate_id"].unique(maintain_order=True))
    tables = shown.sort("rank").partition_by("query_id", as_dict=True, maintain_order=True)
    evidence_ranks = _first_evidence(proponents, data.queries)
    depths: dict[Key, int] = _by_key(proponents.group_by("query_id", "method").len())
    views = []
    for number, query in enumerate(data.queries, start=1):
        hits = _hits(tables.get((query.id,), shown.clear()), query=query, texts=data.texts, common=common)
        columns = [
            Column(
                method=method,
                proponents=tuple(hits.get((PROPONENT, method), ())),
                opponents=tuple(hits.get((OPPONENT, method), ())),
                first_evidence=evidence_ranks.get((query.id, method)),
                num_ranks=depths.get((query.id, method), 0),
            )
            for method in methods
        ]
        prediction = data.predictions.get(query.id, Prediction())
        views.append(QueryView(number, query, _end_of(query.prompt), prediction, tuple(columns)))
    return views


def _metric_column(name: str, metrics: Metrics) -> MetricColumn:
    estimates = {method: values[name] for method, values in metrics.methods.items() if name in values}
    label, explanation = METRIC_TEXTS.get(name, (name, ""))
    highest = max(estimate.value for estimate in estimates.values())
    best = [method for method, estimate in estimates.items() if estimate.value == highest]
    return MetricColumn(
        name=name,
        label=label,
        explanation=explanation,
        axis=shared_axis(estimates.values()),
        estimates=estimates,
        best=frozenset(best if len(best) < len(estimates) else ()),  # where all are equal none is best
    )


def _shown(data: ReportData) -> pl.DataFrame:
    limits = {PROPONENT: data.num_proponents, OPPONENT: data.num_opponents}
    return data.proponents.filter(pl.col("rank") <= pl.col("kind").replace_strict(limits))


def _annotated(shown: pl.DataFrame, *, proponents: pl.DataFrame, data: ReportData) -> pl.DataFrame:
    """The shown rows with the tail-patch of each and the methods and ranks at which others retrieved it."""
    place = ["query_id", "candidate_id"]
    others = (
        shown.select(*place, "method")
        .unique(maintain_order=True)
        .join(proponents.select(*place, other="method", other_rank="rank"), on=place, maintain_order="left_right")
        .filter(pl.col("method") != pl.col("other"))
        .group_by(*place, "method", maintain_order=True)
        .agg("other", "other_rank")
    )
    shown = shown.join(others, on=[*place, "method"], how="left", maintain_order="left")
    if data.tail_patch is None:
        return shown.with_columns(change=pl.lit(None, dtype=pl.Float64))
    changes = data.tail_patch.select(*place, "method", change="probability_change")
    return shown.join(changes, on=[*place, "method"], how="left", maintain_order="left")


def _first_evidence(proponents: pl.DataFrame, queries: Sequence[QueryLike]) -> dict[Key, int]:
    pairs = [(query.id, name) for query in queries for name in query.relevant_ids or ()]
    schema = {"query_id": pl.String, "candidate_id": pl.String}
    relevant = pl.DataFrame(pairs, schema=schema, orient="row")
    return _by_key(proponents.join(relevant, on=list(schema)).group_by("query_id", "method").agg(pl.col("rank").min()))


def _by_key(table: pl.DataFrame) -> dict[Key, int]:
    return {(query_id, method): value for query_id, method, value in table.iter_rows()}


def _hits(
    table: pl.DataFrame, *, query: QueryLike, texts: Mapping[str, str], common: frozenset[str]
) -> dict[tuple[str, str], list[Hit]]:
    """(kind, method) to the passages of one query, by rank."""
    words = Words.of(query.prompt, query.completion, common=common)
    relevant = frozenset(query.relevant_ids or ())
    passages: dict[str, Passage] = {}
    hits: dict[tuple[str, str], list[Hit]] = {}
    for row in table.iter_rows(named=True):
        name = row["candidate_id"]
        if name not in passages:
            passages[name] = passage(texts[name], words)
        hit = Hit(
            rank=row["rank"],
            score=row["score"],
            candidate_id=name,
            passage=passages[name],
            is_evidence=name in relevant,
            change=row["change"],
            elsewhere=tuple(zip(row["other"] or (), row["other_rank"] or (), strict=True)),
        )
        hits.setdefault((row["kind"], row["method"]), []).append(hit)
    return hits


def _end_of(prompt: str) -> str:
    """The prompt, or of a long one the end, which the completion continues."""
    return prompt if len(prompt) <= PROMPT_CHARACTERS else "… " + prompt[-PROMPT_CHARACTERS:]
