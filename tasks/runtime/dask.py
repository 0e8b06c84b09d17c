"""Where the reduction and the scoring run: Dask in this process, on processes of this machine, or on a cluster."""

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin, wait
from threadpoolctl import threadpool_limits

from trackstar.storage.errors import InputError
from trackstar.tasks.runtime.stop import CHECK_INTERVAL_S, check_stop

LOCAL = "local"
PROCESSES = "processes"
CONNECT_TIMEOUT_S = 30
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
    with connect(where) as client, _one_blas_thread(client):
        futures = client.compute(list(parts))
        _wait(futures)
        return client.gather(futures)


def _wait(futures: Sequence[Future]) -> None:
    """Until all are done, or the run is told to stop."""
    while True:
        check_stop()
        with suppress(TimeoutError):
            wait(futures, timeout=CHECK_INTERVAL_S)
            return


def part(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """One task of a graph. Never shared by name: its arguments are large, and hashing them would cost more."""
    return delayed(function, pure=False)(*arguments)


def tree_merge(parts: Sequence[Delayed], merge: Callable[[list[Any]], Any]) -> Delayed:
    """Merge neighbours until one is left, so that no task holds more than ``MERGED_AT_ONCE`` parts."""
    while len(parts) > 1:
        groups = [list(parts[start : start + MERGED_AT_ONCE]) for start in range(0, len(parts), MERGED_AT_ONCE)]
        parts = [part(merge, group) for group in groups]
    return parts[0]


class OneBlasThread(WorkerPlugin):
    """Holds a worker's BLAS at one thread while the plugin is registered, on workers that join later too."""

    def setup(self, worker: Worker) -> None:
        self._limit = threadpool_limits(1, user_api="blas")

    def teardown(self, worker: Worker) -> None:
        self._limit.restore_original_limits()


@contextmanager
def connect(where: str) -> Iterator[Client]:
    """A client of a cluster: of processes on this machine, which end with it, or the one at an address.

    Raises:
        InputError: No scheduler answers at the address.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)  # it logs every connection that opens and closes
    if where == PROCESSES:
        with LocalCluster(threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(where, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {where!r} ({error}); give local, processes or its address"
        ) from error
    with client:
        yield client


@contextmanager
def _one_blas_thread(client: Client) -> Iterator[None]:
    """A cluster is left as it was found."""
    name = f"one-blas-thread-{uuid.uuid4().hex[:8]}"
    client.register_plugin(OneBlasThread(), name=name)
    try:
        yield
    finally:
        client.unregister_worker_plugin(name)
