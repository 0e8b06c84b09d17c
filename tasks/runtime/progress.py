"""Progress a person can watch: a bar on a terminal, log lines with throughput and time left, an artifact in the UI.

Outside of a Prefect run there are only the bar and whoever listens; nothing here imports Prefect before a flow has.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_INTERVAL_S = 10.0

_bar_lock = threading.Lock()


@contextmanager
def progress(description: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(count)``; what it reports goes to the terminal, the run's log and the run's progress artifact."""
    report = _Report(description, total, unit)
    with _bar(description, total) as advance_bar:

        def advance(count: int) -> None:
            advance_bar(count)
            report.advance(count)

        yield advance
    report.close()


class _Report:
    """Log lines and the progress artifact, throttled: an update costs a request to the server."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._started = 0, time.monotonic()
        self._reported = self._started
        self._artifact_id = None

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._reported >= LOG_INTERVAL_S:
            self._reported = now
            self._publish(now - self._started)

    def close(self) -> None:
        if self._artifact_id is not None:
            from prefect.artifacts import update_progress_artifact

            update_progress_artifact(self._artifact_id, progress=100.0)

    def _publish(self, elapsed_s: float) -> None:
        rate = self._done / elapsed_s
        left_s = (self._total - self._done) / rate if rate else float("inf")
        line = (
            f"{self._description}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left_s:,.0f} s left"
        )
        logger = run_logger()
        if logger is None:
            return
        logger.info(line)
        self._show(min(100.0, 100 * self._done / max(self._total, 1)))

    def _show(self, percent: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.context import TaskRunContext

        if self._artifact_id is not None:
            update_progress_artifact(self._artifact_id, progress=percent)
        elif TaskRunContext.get() is not None:
            self._artifact_id = create_progress_artifact(progress=percent, description=self._description)


def run_logger() -> logging.Logger | logging.LoggerAdapter | None:
    """The log of the Prefect run that this happens in, or None."""
    if "prefect" not in sys.modules:
        return None
    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        return get_run_logger()
    except MissingContextError:
        return None


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar if this is a terminal and no other bar is up: a terminal has room for one live display."""
    if not sys.stderr.isatty() or not _bar_lock.acquire(blocking=False):
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task_id = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task_id, count)
    finally:
        _bar_lock.release()
