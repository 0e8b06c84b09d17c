"""The project's one kind of Prefect task: a stage turns a request into an artifact, once.

    request ──identity──▶ directory ──manifest there?──▶ yes: a reference to it
                                                   └──▶ no: run the body into a draft, publish, reference

Two layers keep work from being done twice. The manifest on disk is the authority: it survives a killed worker, a lost
Prefect database and a move to another machine. Prefect's result cache sits in front, keyed by the same identity; where
an artifact has been deleted since, the cached record is refreshed instead of believed. A task run that computed nothing
is ``Cached`` in the UI, whichever of the two said so.
"""

import errno
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.task_runners import TaskRunner
from prefect.tasks import Task, exponential_backoff
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.layout import artifact_directory
from trackstar.storage.manifest import Artifact, Draft, digest_of, is_complete, new_artifact, require_manifest
from trackstar.tasks.runtime.costs import recorded_cost
from trackstar.tasks.runtime.stop import take_or_stop
from trackstar.tasks.runtime.terminal_line import step

CACHED = "Cached"  # Prefect's own word for a task run that took its result from where it lay
NUM_RETRIES = 3
RETRY_BACKOFF_S = 2
RETRY_JITTER = 0.3
PERMANENT_ERRNOS = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT,
    errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
})  # fmt: skip
PASSING_LIBRARIES = frozenset({"distributed", "botocore", "aiobotocore", "aiohttp", "httpx", "httpcore"})
OUT_OF_DEVICE_MEMORY = "OutOfMemoryError"  # torch's, which is a RuntimeError; by name, as not every stage loads torch


class StageRequest(BaseModel):
    """All a stage needs to know. A subclass states which of its fields determine the bytes.

    Attributes:
        kind: Directory of the artifacts below the index, and first part of the cache key.
        version: Raised whenever the code behind the stage would write other bytes for the same identity.
        index: The index directory, or its object store URL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    version: ClassVar[int]

    index: str

    @property
    def label(self) -> str:
        """What a person calls this run in the Prefect UI."""
        raise NotImplementedError

    def inputs(self) -> dict[str, Any]:
        """Everything that determines the artifact's bytes, besides the stage's code."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"stage": self.kind, "version": self.version, **self.inputs()}

    @property
    def directory(self) -> UPath:
        return artifact_directory(self.index, self.kind, digest_of(self.identity()))

    @property
    def cache_key(self) -> str:
        return f"trackstar-{self.kind}-v{self.version}-{digest_of([self.index, self.identity()])}"


StageBody = Callable[[Any, Draft], None]


class Stage:
    """A stage as flows use it: ``submit`` one request, or ``map`` many."""

    def __init__(self, body: StageBody, prefect_task: Task) -> None:
        self.body = body
        self.task = prefect_task
        self.__doc__ = body.__doc__

    def submit(self, request: StageRequest, *, wait_for: Iterable[PrefectFuture] = ()) -> PrefectFuture[Artifact]:
        return self._task_for(request).submit(request, wait_for=list(wait_for))

    def map(self, requests: Sequence[StageRequest], *, runner: TaskRunner | None = None) -> list[PrefectFuture]:
        """Submit all, to the flow's own task runner or to another one that has been started."""
        if runner is None:
            return [self.submit(request) for request in requests]
        return [runner.submit(self._task_for(request), parameters={"request": request}) for request in requests]

    def __call__(self, request: StageRequest) -> Artifact:
        return self.submit(request).result()

    def _task_for(self, request: StageRequest) -> Task:
        is_there = is_complete(request.directory, request.identity())
        return self.task if is_there else self.task.with_options(refresh_cache=True)


def stage(body: StageBody) -> Stage:
    """Make a stage of a function that fills a draft from a request."""

    def run(request: StageRequest) -> Artifact | State:
        found = finished(request)
        return build(body, request) if found is None else Completed(name=CACHED, data=found)

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return Stage(body, cached_task(run))


def cached_task(function: Callable[[Any], Any]) -> Task:
    """A Prefect task of one request: cached by the request's own key, retried where that can help.

    Also used alone, for a step whose result is small enough to be kept by Prefect and is no artifact.
    """
    return task(
        function,
        name=function.__name__.replace("_", "-"),
        task_run_name="{request.label}",
        cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _, parameters: parameters["request"].cache_key),
        persist_result=True,
        result_serializer="json",
        cache_result_in_memory=False,
        retries=NUM_RETRIES,
        retry_delay_seconds=exponential_backoff(backoff_factor=RETRY_BACKOFF_S),
        retry_jitter_factor=RETRY_JITTER,
        retry_condition_fn=is_transient,
    )


def build(body: StageBody, request: StageRequest) -> Artifact:
    """The artifact of a request: the finished one if it is there, else a new one."""
    directory, identity = request.directory, request.identity()
    if not is_complete(directory, identity):
        with (
            step(request.label),
            recorded_cost(request.kind, directory),
            new_artifact(directory, kind=request.kind, identity=identity) as draft,
        ):
            body(request, draft)
    return _reference(request)


def finished(request: StageRequest) -> Artifact | None:
    """The artifact of a request, or None if it has to be computed."""
    return _reference(request) if is_complete(request.directory, request.identity()) else None


def gather(futures: Sequence[PrefectFuture[Artifact]]) -> list[Artifact]:
    """Wait for all, so that one failure throws away no sibling's work; then raise the first failure.

    Raises:
        Stopped: The run was told to stop.
    """
    ended: SimpleQueue[PrefectFuture] = SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    for _ in futures:
        take_or_stop(ended)
    return [future.result() for future in futures]


def is_transient(_: Task, __: TaskRun, state: State) -> bool:
    """Whether trying again could help: input and output, memory, networks and lost workers, yes; all else, no."""
    try:
        state.result()
    except OSError as error:
        return error.errno not in PERMANENT_ERRNOS
    except Exception as error:  # Prefect asks about any failure
        kind = type(error)
        is_network = kind.__module__.partition(".")[0] in PASSING_LIBRARIES
        return is_network or isinstance(error, MemoryError) or kind.__name__ == OUT_OF_DEVICE_MEMORY
    return False


def _reference(request: StageRequest) -> Artifact:
    directory = request.directory
    manifest = require_manifest(directory)
    return Artifact(name=f"{request.kind}/{directory.name}", digest=manifest.digest, facts=manifest.facts)
