"""Where the reduction and the scoring run: Dask in this process, on processes of this machine, or on a cluster."""

from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from threadpoolctl import threadpool_limits

from trackstar.tasks.runtime.stop import check_stop

LOCAL = "local"
PROCESSES = "processes"
MERGED_AT_ONCE = 16


def compute(parts: Sequence[Delayed], *, where: str) -> list[Any]:
    """Compute all, on ``where``: "local" threads, "processes" of this machine, or a scheduler's address.

    One BLAS thread per Dask worker: with as many workers as cores, more would only get in each other's way.

    Raises:
        InputError: No scheduler answers at the address.
        Stopped: The run was told to stop.
    """
    if where == LOCAL:
        with threadpool_limits(1, user_api="blas"), Callback(pretask=lambda *_: check_stop()):
            return list(dask.compute(*parts, scheduler="threads"))
    from trackstar.tasks.runtime.dask_cluster import (  # what runs here alone needs no cluster's code
        connect,
        gathered,
        one_blas_thread,
    )

    with connect(where) as client, one_blas_thread(client):
        return gathered(client, parts)


def part(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """One task of a graph. Never shared by name: its arguments are large, and hashing them would cost more."""
    return delayed(function, pure=False)(*arguments)


def tree_merge(parts: Sequence[Delayed], merge: Callable[[list[Any]], Any]) -> Delayed:
    """Merge neighbours until one is left, so that no task holds more than ``MERGED_AT_ONCE`` parts."""
    while len(parts) > 1:
        groups = [list(parts[start : start + MERGED_AT_ONCE]) for start in range(0, len(parts), MERGED_AT_ONCE)]
        parts = [part(merge, group) for group in groups]
    return parts[0]
