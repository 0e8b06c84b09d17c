"""What is measured of a new index before it serves, and whether it holds.

A mean over the standing queries is held against what the same queries had of the index that serves, query by query:
a gate fails where even the upper end of the 95 % bootstrap interval does not reach the bound.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, MissingError
from trackstar.storage.queries import Query
from trackstar.storage.results import PROPONENT, read_proponents, read_run, read_sealed, write_sealed
from trackstar.tasks.index.contents import Index
from trackstar.tasks.numerics.metrics import bootstrap_interval, reciprocal_rank
from trackstar.tasks.reindex.checkpoints import asked_of
from trackstar.tasks.reindex.drift import measure_drift
from trackstar.tasks.reindex.fidelity import SAMPLE, stored_agreement
from trackstar.tasks.reindex.settings import GateConfig

GATES = "gates.json"
BOOTSTRAP_SEED = 0


class Gate(BaseModel):
    """One thing that was measured.

    Attributes:
        name: As in the settings.
        holds: Whether it is within its bound.
        found: What was measured, in words with all numbers.
        value, low, high: The same; the interval where there is one. None: no finite number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    holds: bool
    found: str
    value: float | None
    low: float | None = None
    high: float | None = None


class Decision(BaseModel):
    """What ``gates.json`` says: what a new index was held against, by which bounds, and what was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    against: str | None
    settings: GateConfig
    gates: tuple[Gate, ...]

    @property
    def holds(self) -> bool:
        return all(gate.holds for gate in self.gates)

    @property
    def failures(self) -> str:
        return "; ".join(f"{gate.found} (--gate-{gate.name})" for gate in self.gates if not gate.holds)


def measure_gates(
    index: Index, results: UPath, *, serving: Index | None, serving_results: UPath | None, settings: GateConfig
) -> Decision:
    """Hold an index and its answers to the standing queries against the index that serves, where one does.

    Args:
        results: Where its answers are, if anything was asked.
    """
    gates = [_quarantined(index, settings.quarantined), _agreement(index, settings.agreement)]
    if serving is not None:
        gates.append(_lost(index, serving, settings.lost))
        gates.extend(_answers(results, serving_results, settings))
    against = serving.path.name if serving is not None else None
    return Decision(index=index.path.name, against=against, settings=settings, gates=tuple(gates))


def decision_of(results: UPath) -> Decision | None:
    """What was decided of an index; None where nothing was, or nobody can read it: then it is measured anew."""
    try:
        return Decision.model_validate(read_sealed(results / GATES, cure="delete it"))
    except (MissingError, CorruptionError, ValidationError):
        return None


def write_decision(results: UPath, decision: Decision) -> None:
    write_sealed(results / GATES, decision.model_dump(mode="json"))


def _quarantined(index: Index, bound: float) -> Gate:
    quarantined, documents = index.total("num_quarantined"), index.total("num_documents")
    share = quarantined / (quarantined + documents)
    found = f"{quarantined:,} of {quarantined + documents:,} rows are quarantined, {share:.2%} and at most {bound:.2%}"
    return Gate(name="quarantined", holds=share <= bound, found=found, value=share)


def _agreement(index: Index, bound: float) -> Gate:
    lowest = stored_agreement(index)
    found = (
        f"the lowest cosine of {SAMPLE} stored encodings with their gradients is {lowest:.3f} and at least {bound:g}"
    )
    return Gate(name="agreement", holds=lowest >= bound, found=found, value=lowest)


def _lost(index: Index, serving: Index, bound: float) -> Gate:
    """Withdrawn documents are no loss: they are counted in neither."""
    now, before = (one.total("num_documents") - one.num_withdrawn for one in (index, serving))
    share = max(0.0, (before - now) / before)
    found = f"{now:,} documents where {serving.path.name} has {before:,}, {share:.2%} fewer and at most {bound:.2%}"
    return Gate(name="lost", holds=share <= bound, found=found, value=share)


def _answers(results: UPath, serving_results: UPath | None, settings: GateConfig) -> list[Gate]:
    """The gates of the queries that both were asked; none where there are none."""
    asked = asked_of(results)
    before = asked_of(serving_results) if serving_results is not None else None
    if asked is None or before is None:
        return []
    common = [query for query in asked.queries if query in before.queries]
    if not common:
        return []
    places = (serving_results, results)
    gates = [_less_likely(_losses(places, common), settings.probability)]
    judged = [query for query in common if query.relevant_ids]
    if judged:
        gates.append(_lower_mrr(_reciprocal_ranks(places, judged), settings.mrr))
    overlap = measure_drift(serving_results, results, asked).mean_overlap
    found = f"the answers' rank-biased overlap is {overlap:.3f} and at least {settings.overlap:g}"
    return [*gates, Gate(name="overlap", holds=overlap >= settings.overlap, found=found, value=overlap)]


def _less_likely(losses: Sequence[np.ndarray], bound: float) -> Gate:
    """Whether the completions have not surely become less likely: their geometric mean, whose logarithm is -loss."""
    before, after = losses
    low, high = map(math.exp, _interval(before - after))
    ratio = math.exp((before - after).mean())
    found = (
        f"the completions are {ratio:.3g} times as probable as before (geometric mean of {len(before)} queries), "
        f"within {low:.3g} and {high:.3g} (95 %), which must reach {1 - bound:g}"
    )
    return Gate(name="probability", holds=high >= 1 - bound, found=found, value=ratio, low=low, high=high)


def _lower_mrr(ranks: Sequence[np.ndarray], bound: float) -> Gate:
    """Whether the mean reciprocal rank has not surely lost more than a share ``bound`` of what it was."""
    before, after = ranks
    low, high = _interval(after - before)
    least = -bound * before.mean()
    found = (
        f"MRR went from {before.mean():.3f} to {after.mean():.3f} over {len(before)} queries, the change within "
        f"{low:.3f} and {high:.3f} (95 %), which must reach {least:.3f}"
    )
    return Gate(name="mrr", holds=high >= least, found=found, value=(after - before).mean(), low=low, high=high)


def _interval(change: np.ndarray) -> tuple[float, float]:
    return bootstrap_interval(change, generator=np.random.default_rng(BOOTSTRAP_SEED))


def _losses(places: Sequence[UPath], queries: Sequence[Query]) -> list[np.ndarray]:
    runs = [read_run(results)["queries"] for results in places]
    return [np.array([run[query.id]["loss"] for query in queries]) for run in runs]


def _reciprocal_ranks(places: Sequence[UPath], queries: Sequence[Query]) -> list[np.ndarray]:
    """Of the first document that is evidence, 0 below the ranks that were kept."""
    tables = [read_proponents(results).filter(pl.col("kind") == PROPONENT).sort("rank") for results in places]

    def of(table: pl.DataFrame, query: Query) -> float:
        ranked = table.filter(pl.col("query_id") == query.id)["candidate_id"].to_list()
        return reciprocal_rank(ranked, set(query.relevant_ids or ()))

    return [np.array([of(table, query) for query in queries]) for table in tables]
