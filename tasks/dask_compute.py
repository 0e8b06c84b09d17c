"""Where the reduction and the scoring run: Dask in this process, on processes of this machine, or on a cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from dask.delayed import Delayed
from threadpoolctl import threadpool_limits

LOCAL = "local"
PROCESSES = "processes"


def compute(delayed: Sequence[Delayed], *, where: str) -> list[Any]:
    """Compute all, on ``where``: "local" threads, "processes" of this machine, or a scheduler's address.

    One BLAS thread per Dask worker: with as many workers as cores, more would only get in each other's way.
    """
    if where == LOCAL:
        with threadpool_limits(1, user_api="blas"):
            return list(dask.compute(*delayed, scheduler="threads"))
    with _client(where) as client:
        return client.gather(client.compute(list(delayed)))


@contextmanager
def _client(where: str) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if where == PROCESSES:
        with LocalCluster(threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            yield client
    else:
        with Client(where) as client:
            yield client
