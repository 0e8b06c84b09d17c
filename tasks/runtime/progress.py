"""Progress a person can watch: a line on a terminal, log lines with throughput and time left, an artifact in the UI.

Outside of a Prefect run there is only the line; nothing here imports Prefect before a flow has.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trackstar.tasks.runtime.terminal_line import step

LOG_INTERVAL_S = 10.0


@contextmanager
def progress(description: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(count)``; what it reports goes to the terminal, the run's log and the run's progress artifact."""
    report = _Report(description, total, unit)
    with step(description, total=total) as advance_line:

        def advance(count: int) -> None:
            advance_line(count)
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
            import httpx
            from prefect.artifacts import update_progress_artifact

            with suppress(httpx.TransportError):
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
        import httpx

        with suppress(httpx.TransportError):  # a server that is gone takes no work with it
            self._show_in_prefect(percent)

    def _show_in_prefect(self, percent: float) -> None:
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
