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
from trackstar.tasks.runtime.stage import Stage, StageRequest, finished, gather
from trackstar.tasks.runtime.terminal_line import step


def compute_shards(stage: Stage, requests: Sequence[StageRequest], *, where: str) -> list[Artifact]:
    """Compute all shards on ``where`` and wait for them.

    Raises:
        InputError: No scheduler answers at the address.
    """
    missing = {request.directory.name: request.shard.num_rows for request in requests if finished(request) is None}
    whole = {"total": sum(missing.values()) or None, "is_whole": True}
    with step(f"gradients of {len(missing)} shards", **whole) as advance, shard_runner(where) as runner:
        futures = stage.map(requests, runner=runner)
        if runner is not None:  # progress within a shard stays in the process that computes it
            for request, future in zip(requests, futures, strict=True):
                count = missing.get(request.directory.name, 0)
                future.add_done_callback(lambda _, count=count: advance(count))
        return gather(futures)


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
