"""The metrics of all methods, arranged as the report's tables read them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from trackstar.tasks.evaluation.metrics import TAIL_PATCH, Estimate, Metrics
from trackstar.tasks.numerics.metrics import bootstrap_interval
from trackstar.tasks.report.data import ReportData
from trackstar.tasks.report.plots import Axis, shared_axis

EVIDENCE_TEXTS = {
    "relevant_ids": "the queries’ own relevant ids",
    "aliases": "the answer, or another name of it, found in the passage",
    "entailment": "an entailment model that read the pool",
}

METRIC_TEXTS = {
    "mrr": ("MRR", "mean of 1 / rank of the first passage that states the fact; 0 where none was retrieved"),
    "hit_at_10": ("Hit@10", "share of queries with a passage that states the fact among the first ten"),
    "recall_at_10": ("Recall@10", "share of the passages that state the fact found among the first ten"),
    "precision_at_10": ("Precision@10", "share of the first ten that state the fact"),
    TAIL_PATCH: ("Tail-patch", "change of the completion’s probability after one training step on a proponent"),
}


@dataclass(frozen=True)
class MetricColumn:
    """One metric of all methods, drawn on one axis."""

    name: str
    label: str
    explanation: str
    axis: Axis
    estimates: Mapping[str, Estimate]
    best: frozenset[str]


@dataclass(frozen=True)
class StepEffect:
    """Tail-patch of one method's proponents that state the fact, and of those that do not."""

    method: str
    stating: Estimate | None
    num_stating: int
    silent: Estimate | None
    num_silent: int


def metric_columns(metrics: Metrics) -> list[MetricColumn]:
    """The metrics that any method has, the well-known first; higher is better in all of them."""
    present = dict.fromkeys(name for estimates in metrics.methods.values() for name in estimates)
    names = [name for name in METRIC_TEXTS if name in present] + [name for name in present if name not in METRIC_TEXTS]
    return [_metric_column(name, metrics) for name in names]


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


def step_effects(data: ReportData) -> list[StepEffect]:
    """Per method with both kinds of proponents, what a training step on either does; a mean over queries each."""
    if data.tail_patch is None or not any(query.relevant_ids for query in data.queries):
        return []
    pairs = [(query.id, name) for query in data.queries for name in query.relevant_ids or ()]
    schema = {"query_id": pl.String, "candidate_id": pl.String}
    relevant = pl.DataFrame(pairs, schema=schema, orient="row").with_columns(states=pl.lit(True))
    asked = [query.id for query in data.queries if query.relevant_ids]
    changes = data.tail_patch.filter(pl.col("query_id").is_in(asked)).join(relevant, on=list(schema), how="left")
    effects = []
    for method in changes["method"].unique(maintain_order=True):
        of_method = changes.filter(pl.col("method") == method)
        stating = of_method.filter(pl.col("states"))
        silent = of_method.filter(pl.col("states").is_null())
        effects.append(StepEffect(method, _mean_change(stating), len(stating), _mean_change(silent), len(silent)))
    return effects


def _mean_change(changes: pl.DataFrame) -> Estimate | None:
    if not len(changes):
        return None
    means = changes.group_by("query_id", maintain_order=True).agg(pl.col("probability_change").mean())
    values = means["probability_change"].to_numpy()
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0))
    return Estimate(value=float(values.mean()), low=low, high=high)
