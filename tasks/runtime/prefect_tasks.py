"""Stages as Prefect tasks: retried where that can help, cached by their request. Only a flow imports this."""

import errno
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from trackstar.tasks.runtime.stop import take_or_stop

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


def prefect_task(function: Callable[[Any], Any]) -> Task:
    """A Prefect task of one request: cached by the request's own key, retried where that can help."""
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


def cached(result: Any) -> State:
    """What a task run ends as that computed nothing."""
    return Completed(name=CACHED, data=result)


def results(futures: Sequence[PrefectFuture]) -> list[Any]:
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
