"""Running a flow from a terminal, with or without a Prefect server behind it."""

import logging
import time
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings

from trackstar.flows.places import require_server
from trackstar.storage.errors import InputError, PartlyDoneError, StorageError

RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")

DRAIN_TIMEOUT_S = 30.0
DRAIN_INTERVAL_S = 0.5
QUIET_CHECKS = 2


def recorded(flow: Flow, config: Any) -> Any:
    """Run a flow and return its result.

    Task runs travel to the server as events. A server that lives only as long as this process would lose those still
    on their way, so the process waits for them; a server of its own needs no waiting.
    """
    server = get_current_settings().api.url
    if server:
        require_server(str(server))
    for name in RUN_LOGGERS:
        logging.getLogger(name).addFilter(_without_known_traceback)
    state = flow(config, return_state=True)
    if not server:
        with get_client(sync_client=True) as client:
            _wait_for_task_runs(client, state.state_details.flow_run_id)
    return state.result()


def _without_known_traceback(record: logging.LogRecord) -> bool:
    """An error that is a sentence for a person needs no traceback above it."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, InputError | StorageError | PartlyDoneError):
        record.exc_info, record.msg, record.args = None, "%s", (error,)
    return True


def _wait_for_task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Until every task run that is known has ended and no new one has come up for a while."""
    deadline, previous, quiet = time.monotonic() + DRAIN_TIMEOUT_S, -1, 0
    of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while time.monotonic() < deadline and quiet < QUIET_CHECKS:
        runs = client.read_task_runs(flow_run_filter=of_this_run)
        has_ended = all(run.state is not None and run.state.is_final() for run in runs)
        quiet = quiet + 1 if has_ended and len(runs) == previous else 0
        previous = len(runs)
        time.sleep(DRAIN_INTERVAL_S)
