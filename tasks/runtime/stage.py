"""The project's one kind of Prefect task: a stage turns a request into an artifact, once.

    request ──identity──▶ directory ──manifest there?──▶ yes: a reference to it
                                                   └──▶ no: run the body into a draft, publish, reference

Two layers keep work from being done twice. The manifest on disk is the authority: it survives a killed worker, a lost
Prefect database and a move to another machine. Prefect's result cache sits in front, keyed by the same identity; where
an artifact has been deleted since, the cached record is refreshed instead of believed. A task run that computed nothing
is ``Cached`` in the UI, whichever of the two said so.

Outside of a flow a stage runs where it is called, and imports no Prefect: a question that a person waits for, a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.layout import artifact_directory
from trackstar.storage.manifest import Artifact, Draft, is_complete, new_artifact, require_manifest
from trackstar.tasks.runtime.costs import recorded_cost
from trackstar.tasks.runtime.prefect_context import in_flow
from trackstar.tasks.runtime.terminal_line import step

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner
    from prefect.tasks import Task


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


class Done(NamedTuple):
    """A future whose work is done: that of a step which ran where it was submitted."""

    value: Any

    def result(self) -> Any:
        return self.value


class CachedTask:
    """A function of one request that flows submit as a Prefect task.

    Used alone for a step whose result is small enough to be kept by Prefect and is no artifact.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.fn = function
        self.__doc__ = function.__doc__

    @cached_property
    def task(self) -> Task:
        from trackstar.tasks.runtime.prefect_tasks import prefect_task

        return prefect_task(self.fn)

    def submit(self, request: Any, *, wait_for: Iterable[PrefectFuture] = ()) -> PrefectFuture | Done:
        if not in_flow():
            return Done(self._run_here(request))
        return self._task_for(request).submit(request, wait_for=list(wait_for))

    def __call__(self, request: Any) -> Any:
        return self.submit(request).result()

    def _run_here(self, request: Any) -> Any:
        return self.fn(request)

    def _task_for(self, request: Any) -> Task:
        return self.task


class Stage(CachedTask):
    """A stage as flows use it: ``submit`` one request, or ``map`` many."""

    def __init__(self, body: StageBody) -> None:
        self.body = body

        def run(request: StageRequest) -> Artifact | State:
            from trackstar.tasks.runtime.prefect_tasks import cached

            found = finished(request)
            return build(body, request) if found is None else cached(found)

        run.__name__, run.__doc__ = body.__name__, body.__doc__
        super().__init__(run)

    def map(self, requests: Sequence[StageRequest], *, runner: TaskRunner | None = None) -> list[PrefectFuture | Done]:
        """Submit all, to the flow's own task runner or to another one that has been started."""
        if runner is None:
            return [self.submit(request) for request in requests]
        return [runner.submit(self._task_for(request), parameters={"request": request}) for request in requests]

    def _run_here(self, request: StageRequest) -> Artifact:
        return build(self.body, request)

    def _task_for(self, request: StageRequest) -> Task:
        is_there = is_complete(request.directory, request.identity())
        return self.task if is_there else self.task.with_options(refresh_cache=True)


def stage(body: StageBody) -> Stage:
    """Make a stage of a function that fills a draft from a request."""
    return Stage(body)


def cached_task(function: Callable[[Any], Any]) -> CachedTask:
    """Make a task of a function of one request, which names its own ``cache_key`` and ``label``."""
    return CachedTask(function)


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


def gather(futures: Sequence[PrefectFuture | Done]) -> list[Any]:
    """Wait for all, so that one failure throws away no sibling's work; then raise the first failure."""
    if all(isinstance(future, Done) for future in futures):
        return [future.result() for future in futures]
    from trackstar.tasks.runtime.prefect_tasks import results

    return results(futures)


def _reference(request: StageRequest) -> Artifact:
    directory = request.directory
    manifest = require_manifest(directory)
    return Artifact(name=f"{request.kind}/{directory.name}", digest=manifest.digest, facts=manifest.facts)
