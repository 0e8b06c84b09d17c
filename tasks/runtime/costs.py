"""How long a step took when it was computed: kept beside its artifact, so that a cached run still knows.

Seconds are no part of what an artifact is: no manifest names ``cost.json``, which has a digest of its own, and one that
is lost is merely not shown. Only what a comparison computes has one; an index holds the same bytes however long it took
(``trackstar.tasks.evaluation.costs``).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from upath import UPath

from trackstar.storage.errors import MissingError
from trackstar.storage.layout import COST, COST_CURE
from trackstar.storage.results import read_sealed, write_sealed

TIMED_KINDS = frozenset(
    {
        "queries",
        "factors",
        "train_norms",
        "spectrum",
        "rankings",
        "shrunk",
        "reranked",
        "joint",
        "plain_shards",
        "embeddings",
        "judgements",
    }
)
SECONDS = "seconds"


@contextmanager
def recorded_cost(kind: str, directory: UPath) -> Iterator[None]:
    """Time the making of an artifact of one of the kinds that are timed."""
    start = time.monotonic()
    yield
    if kind in TIMED_KINDS:
        write_sealed(directory / COST, {SECONDS: round(time.monotonic() - start, 3)})


def seconds(directory: UPath) -> float | None:
    """What an artifact took, or None where it was not timed.

    Raises:
        CorruptionError: What was written down is damaged.
    """
    try:
        return read_sealed(directory / COST, cure=COST_CURE)[SECONDS]
    except MissingError:
        return None
