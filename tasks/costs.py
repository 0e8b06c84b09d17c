"""How long a step took when it was computed: kept beside its artifact, so that a cached run still knows.

Seconds are no part of what an artifact is: no digest covers ``cost.json``, and one that is lost is merely not shown.
Only what is computed for a query set has one; an index holds the same bytes however long it took.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from upath import UPath

from storage.errors import MissingError
from storage.layout import COST
from storage.manifest import Artifact
from storage.results import read_json, write_json

TIMED_KINDS = frozenset({"queries", "factors", "train_norms", "spectrum", "rankings"})
SECONDS = "seconds"

QUERY_GRADIENTS = "query gradients"
CORPUS_STATISTICS = "factors, norms, spectrum"
SCORES = "scores"
SUM = "sum"
STEPS = (QUERY_GRADIENTS, CORPUS_STATISTICS, SCORES, SUM)


@contextmanager
def recorded_cost(kind: str, directory: UPath) -> Iterator[None]:
    """Time the making of an artifact of one of the kinds that are timed."""
    start = time.monotonic()
    yield
    if kind in TIMED_KINDS:
        write_json(directory / COST, {SECONDS: round(time.monotonic() - start, 3)})


def seconds(directory: UPath) -> float | None:
    """What an artifact took, or None where it was not timed."""
    try:
        return read_json(directory / COST)[SECONDS]
    except MissingError:
        return None


def method_costs(index: UPath, rankings: Sequence[Artifact]) -> dict[str, dict[str, float]]:
    """Per method, the seconds of each step it needs for a query set once there is an index: what it takes by itself."""
    return {ranking.facts["method"]: _method_cost(index, ranking) for ranking in rankings}


def _method_cost(index: UPath, ranking: Artifact) -> dict[str, float]:
    steps: Mapping[str, Sequence[str | None]] = {SCORES: [ranking.name]}
    if "whitening" in ranking.facts:  # a method that scores gradients
        statistics = [ranking.facts.get(name) for name in ("factors", "train_norms", "spectrum")]
        steps = {QUERY_GRADIENTS: [ranking.facts.get("queries")], CORPUS_STATISTICS: statistics, **steps}
    took = {step: [seconds(index / name) for name in names if name] for step, names in steps.items()}
    known = {step: round(sum(parts), 2) for step, parts in took.items() if parts and None not in parts}
    return {**known, SUM: round(sum(known.values()), 2)} if len(known) == len(steps) > 1 else known
