"""Running a flow from a terminal, with or without a Prefect server behind it."""

import logging
import os
import threading
import time
from concurrent.futures import Future
from functools import wraps
from typing import Any
from uuid import UUID

import click
import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings

from trackstar.flows.places import is_answering, require_server
from trackstar.storage.errors import InputError, PartlyDoneError, ServerLostError, StorageError

RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")

DELIVERY_LOGGERS = ("prefect._internal.concurrency", "prefect.events.clients", "EventsWorker")

DRAIN_TIMEOUT_S = 30.0
DRAIN_INTERVAL_S = 0.5
QUIET_CHECKS = 2
EXIT_TIMEOUT_S = 10.0  # for printing a result


def recorded(flow: Flow, config: Any) -> Any:
    """Run a flow and return its result.

    Task runs travel to the server as events. A server that lives only as long as this process would lose those still
    on their way, so the process waits for them; a server of its own needs no waiting.
    """
    server = get_current_settings().api.url
    if server:
        require_server(str(server))
    for name in DELIVERY_LOGGERS:  # they repeat every event that a server which is gone did not take
        logging.getLogger(name).addFilter(lambda record: False)
    for name in RUN_LOGGERS:
        logging.getLogger(name).addFilter(_without_known_traceback)
    remembering, outcome = _remembering(flow)
    try:
        state = remembering(config, return_state=True)
    except httpx.TransportError as error:
        return _without_server(str(server or "of this process"), outcome, error)
    if server and not is_answering(str(server)):
        return _without_server(str(server), outcome, None)
    if not server:
        with get_client(sync_client=True) as client:
            _wait_for_task_runs(client, state.state_details.flow_run_id)
    return state.result()


def _remembering(flow: Flow) -> tuple[Flow, Future]:
    """The flow, and what comes of it, whether or not a server hears of it."""
    outcome: Future[Any] = Future()

    @wraps(flow.fn)
    def run(config: Any) -> Any:
        try:
            outcome.set_result(flow.fn(config))
        except BaseException as error:
            outcome.set_exception(error)
        return outcome.result()

    remembering = flow.with_options()
    remembering.fn = run
    return remembering, outcome


def _without_server(server: str, outcome: Future, error: Exception | None) -> Any:
    """The result of a flow whose server went away: what is on disk is done, whoever was told.

    Raises:
        ServerLostError: The flow could not end without it.
    """
    is_done = outcome.done() and outcome.exception() is None
    end_soon = threading.Timer(EXIT_TIMEOUT_S, os._exit, [0 if is_done else 1])
    end_soon.daemon = True  # what Prefect has left to send, it would go on sending for ever
    end_soon.start()
    if not outcome.done() or isinstance(outcome.exception(), httpx.TransportError):
        raise ServerLostError(server) from error
    if is_done:
        click.echo(f"the Prefect server {server} went away and does not know that this run is done", err=True)
    return outcome.result()


def _without_known_traceback(record: logging.LogRecord) -> bool:
    """An error that is a sentence for a person needs no traceback above it."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, httpx.TransportError):  # of which the command says what it means
        return False
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
