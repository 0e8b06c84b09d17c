"""Where shards are computed: one after another in this process, or side by side on Dask.

    local       in this process
    processes   one shard a core of this machine
    ADDRESS     one shard a worker of a cluster, whose workers have the package and reach the storage

The bytes are the same. A lost worker takes nothing with it but the shard it was at, which Dask gives to another one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner
from prefect_dask import DaskTaskRunner

from trackstar.storage.manifest import Artifact
from trackstar.tasks.runtime.dask import LOCAL
from trackstar.tasks.runtime.dask_cluster import connect
from trackstar.tasks.runtime.stage import Stage, StageRequest, gather


def compute_shards(stage: Stage, requests: Sequence[StageRequest], *, where: str) -> list[Artifact]:
    """Compute all shards on ``where`` and wait for them.

    Raises:
        InputError: No scheduler answers at the address.
    """
    with shard_runner(where) as runner:
        return gather(stage.map(requests, runner=runner))


@contextmanager
def shard_runner(where: str) -> Iterator[TaskRunner | None]:
    """The runner that shards are submitted to; None is the flow's own, in this process."""
    if where == LOCAL:
        yield None
        return
    with connect(where) as client, _server_for_all(), DaskTaskRunner(address=client.scheduler.address) as runner:
        yield runner


@contextmanager
def _server_for_all() -> Iterator[None]:
    """Workers report to the server of this flow run; without an address each would start one of its own."""
    with temporary_settings({PREFECT_API_URL: str(FlowRunContext.get().client.api_url)}):
        yield
