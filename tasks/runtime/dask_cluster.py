"""A Dask cluster: of processes on this machine, or the one at an address."""

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dask.delayed import Delayed
from distributed import Client, LocalCluster, Worker, WorkerPlugin, wait
from threadpoolctl import threadpool_limits

from trackstar.storage.errors import InputError
from trackstar.tasks.runtime.dask import PROCESSES
from trackstar.tasks.runtime.stop import CHECK_INTERVAL_S, check_stop

CONNECT_TIMEOUT_S = 30


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
def one_blas_thread(client: Client) -> Iterator[None]:
    """A cluster is left as it was found."""
    name = f"one-blas-thread-{uuid.uuid4().hex[:8]}"
    client.register_plugin(OneBlasThread(), name=name)
    try:
        yield
    finally:
        client.unregister_worker_plugin(name)


def gathered(client: Client, parts: Sequence[Delayed]) -> list[Any]:
    """What a cluster makes of all parts.

    Raises:
        Stopped: The run was told to stop.
    """
    futures = client.compute(list(parts))
    while True:
        check_stop()
        with suppress(TimeoutError):
            wait(futures, timeout=CHECK_INTERVAL_S)
            return client.gather(futures)
