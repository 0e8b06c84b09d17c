"""From rankings and tail-patch measurements to the numbers of ``metrics.json``.

Each metric is a mean over queries with a bootstrap interval over queries. Differences between methods are taken query
by query (method minus reference), so that what makes a query hard for both cancels.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from trackstar.storage.errors import InputError
from trackstar.storage.results import PROPONENT, QueryLike
from trackstar.tasks.numerics.metrics import bootstrap_interval, hit_at_k, precision_at_k, recall_at_k, reciprocal_rank

TAIL_PATCH = "tail_patch"
RELEVANT_IDS = "relevant_ids"
RETRIEVAL: Mapping[str, Callable[[Sequence[str], AbstractSet[str]], float]] = {
    "mrr": reciprocal_rank,
    "hit_at_10": partial(hit_at_k, k=10),
    "recall_at_10": partial(recall_at_k, k=10),
    "precision_at_10": partial(precision_at_k, k=10),
}

IN_VAIN: Mapping[str, str] = {
    RELEVANT_IDS: "{count} with an empty list of relevant_ids",
    "aliases": "{count} with aliases: no text holds the answer or one of them",
    "entailment": "{count} judged by the entailment model: it found none",
}

PerQuery = Mapping[str, float]  # query id to value


class Estimate(BaseModel):
    """A mean over queries and its 95 % bootstrap interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)


class Pool(BaseModel):
    """What an entailment model was asked: all that is known of the evidence of the queries it judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    digest: str = Field(description="Of the model's files.")
    threshold: float = Field(description="How sure it must be that a document entails the fact.")
    depth: int = Field(description="Documents of each method and query that are in the pool.")
    num_queries: int = Field(ge=0)
    num_documents: int = Field(ge=0, description="Judged, those of different queries counted apart.")
    num_evidence: int = Field(ge=0, description="Found to state the fact of their query.")


class Metrics(BaseModel):
    """The content of ``metrics.json``; ``model_dump()`` is its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: dict[str, dict[str, Estimate]] = Field(description="Method to metric to estimate.")
    reference: str | None = Field(description="The method that the differences are taken against: the first one.")
    differences: dict[str, dict[str, Estimate]] = Field(description="Method minus reference, paired by query.")
    evidence: str | None = Field(
        description="Where relevance comes from: relevant_ids, aliases (found in the text), entailment; null without."
    )
    num_queries_by_evidence: dict[str, int] = Field(description="The queries with evidence, by where it comes from.")
    num_queries_in_vain: dict[str, int] = Field(
        {}, description="The queries of which a source says that nothing is evidence, by source."
    )
    pool: Pool | None = Field(None, description="What was judged, where evidence comes from entailment.")
    num_queries: int = Field(ge=0)
    num_queries_with_evidence: int = Field(ge=0, description="Only these enter the retrieval metrics.")
    num_ranks: dict[str, int] = Field(description="Proponents per query; evidence below counts as not found.")


def evaluate(
    frame: pl.DataFrame,
    queries: Sequence[QueryLike],
    *,
    tail_patch: pl.DataFrame | None = None,
    evidence: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Metrics:
    """Retrieval metrics of every method in a result table, and its tail-patch where that was measured.

    Args:
        frame: A result table; opponents in it are ignored. The order in which methods appear is kept.
        queries: Those without relevant ids are left out of the retrieval metrics; if all are, the metrics are absent.
        evidence: Query id to the source of its relevant ids, where that is not the query itself.
        tail_patch: Columns query_id, method, candidate_id, probability_change; averaged within a query first.
        seed: Of the bootstrap. Every interval is drawn from it anew, so that none depends on what else is computed.

    Raises:
        InputError: Two queries share an id.
        ValueError: A method has no ranking for one of the queries, or a measurement is not finite.
    """
    _require_distinct_ids(queries)
    proponents = frame.filter(pl.col("kind") == PROPONENT)
    per_query = _retrieval_values(proponents, queries)
    if tail_patch is not None:
        for method, values in _tail_patch_values(tail_patch).items():
            per_query.setdefault(method, {})[TAIL_PATCH] = values
    reference = next(iter(per_query), None)
    asked = {query.id: RELEVANT_IDS for query in queries if query.relevant_ids is not None} | dict(evidence or {})
    sources = Counter(asked[query.id] for query in queries if query.relevant_ids)
    in_vain = Counter(asked[query.id] for query in queries if query.id in asked and not query.relevant_ids)
    return Metrics(
        methods={name: _estimates(metrics, seed=seed) for name, metrics in per_query.items()},
        reference=reference,
        differences={
            name: _estimates(_differences(metrics, per_query[reference]), seed=seed)
            for name, metrics in per_query.items()
            if name != reference
        },
        evidence=" and ".join(sources) or None,
        num_queries_by_evidence=dict(sources),
        num_queries_in_vain=dict(in_vain),
        num_queries=len(queries),
        num_queries_with_evidence=sources.total(),
        num_ranks=dict(proponents.group_by("method", maintain_order=True).agg(pl.col("rank").max()).iter_rows()),
    )


def no_evidence(metrics: Metrics) -> str | None:
    """The sentence that says why there are no retrieval metrics, or None where there are some."""
    if metrics.num_queries_with_evidence:
        return None
    searched = [IN_VAIN[source].format(count=f"{n:,}") for source, n in metrics.num_queries_in_vain.items()]
    reasons = "; ".join(searched) or "they name neither relevant_ids nor aliases, and no entailment model was asked"
    return (
        f"None of the {metrics.num_queries:,} queries has evidence ({reasons}), so there is no MRR, hit rate, recall "
        "or precision; give relevant_ids or aliases that are in the corpus, or --entailment-model"
    )


def _retrieval_values(proponents: pl.DataFrame, queries: Sequence[QueryLike]) -> dict[str, dict[str, PerQuery]]:
    """Method to metric to query to value; a method without any metric is there too, with none."""
    rankings = _rankings(proponents)
    relevant = {query.id: frozenset(query.relevant_ids) for query in queries if query.relevant_ids}
    values: dict[str, dict[str, PerQuery]] = {}
    for method in proponents["method"].unique(maintain_order=True):
        missing = [query.id for query in queries if (method, query.id) not in rankings]
        if missing:
            raise ValueError(f"method {method!r} ranks nothing for query {missing[0]!r}; give every method every query")
        values[method] = {
            metric: {name: score(rankings[method, name], relevant[name]) for name in relevant}
            for metric, score in RETRIEVAL.items()
            if relevant
        }
    return values


def _rankings(proponents: pl.DataFrame) -> dict[tuple[str, str], list[str]]:
    groups = proponents.sort("rank").group_by("method", "query_id", maintain_order=True)
    return {(method, name): ids for method, name, ids in groups.agg("candidate_id").iter_rows()}


def _tail_patch_values(tail_patch: pl.DataFrame) -> dict[str, PerQuery]:
    """Method to query to the mean probability change of its candidates."""
    change = pl.col("probability_change")
    broken = tail_patch.filter(change.is_null() | ~change.is_finite())
    if len(broken):
        raise ValueError(f"the tail-patch of {broken.row(0, named=True)} is not a finite number; measure it again")
    values: dict[str, dict[str, float]] = {}
    means = tail_patch.group_by("method", "query_id", maintain_order=True).agg(change.mean())
    for method, query_id, value in means.iter_rows():
        values.setdefault(method, {})[query_id] = value
    return values


def _differences(metrics: Mapping[str, PerQuery], reference: Mapping[str, PerQuery]) -> dict[str, PerQuery]:
    """Method minus reference on the queries both have; a metric without any such query has no difference."""
    pairs = {
        metric: {name: value - reference[metric][name] for name, value in values.items() if name in reference[metric]}
        for metric, values in metrics.items()
        if metric in reference
    }
    return {metric: values for metric, values in pairs.items() if values}


def _estimates(metrics: Mapping[str, PerQuery], *, seed: int) -> dict[str, Estimate]:
    return {metric: _estimate(values, seed=seed) for metric, values in metrics.items()}


def _estimate(per_query: PerQuery, *, seed: int) -> Estimate:
    values = np.array(list(per_query.values()), dtype=np.float64)
    low, high = bootstrap_interval(values, generator=np.random.default_rng(seed))
    return Estimate(value=float(values.mean()), low=low, high=high)


def _require_distinct_ids(queries: Sequence[Any]) -> None:
    ids = [query.id for query in queries]
    repeated = {name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else set()
    if repeated:
        raise InputError(f"query id {min(repeated)!r} occurs more than once; give every query its own id")
