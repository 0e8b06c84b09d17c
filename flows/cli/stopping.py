"""What Ctrl-C and SIGTERM do to a command that runs a flow.

    first signal    no new work is begun; after at most GRACE_S the process ends
    second signal   it ends at once

The work runs in a thread of its own and this one waits for signals: Prefect replaces handlers and retries interrupted
calls, and neither reaches this thread. The process then ends without what Python and Prefect do at exit, which waits
for a server that may be gone; what a killed run leaves is cleared by the next one.
"""

import contextvars
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

from trackstar.tasks.runtime.stop import tell_to_stop

GRACE_S = 7.0
POLL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Result = TypeVar("Result")


def stoppable(work: Callable[[], Result], *, sentence: Callable[[], str]) -> Result:
    """Return what the work returns, raise what it raises, or end the process when a signal says so.

    Args:
        sentence: Says what is kept and how to go on; asked for when the process ends.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        return work()
    events: SimpleQueue[int | None] = SimpleQueue()  # numbers of signals; None when the work is done
    outcome: list[Any] = []  # whether it succeeded, and its result or error

    def run() -> None:
        try:
            outcome.extend((True, work()))
        except BaseException as error:  # the waiting thread raises it
            outcome.extend((False, error))
        finally:
            events.put(None)

    with _signals_to(events):
        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        number = _next(events, timeout_s=float("inf"))
        if number is not None:
            _tell()
            _next(events, timeout_s=GRACE_S)
            if not (outcome and outcome[0]):
                _end(number, sentence())
    is_done, value = outcome
    if is_done:
        return value
    raise value


@contextmanager
def _signals_to(events: SimpleQueue) -> Iterator[None]:
    before = {number: signal.signal(number, lambda number, _: events.put(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(events: SimpleQueue[int | None], *, timeout_s: float) -> int | None:
    """The next event; None also where none came in time.

    Looked for again and again: a library may have set the handler anew so that a signal interrupts no waiting (polars
    does), and Python runs its handlers between two steps of this thread.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(Empty):
            return events.get(timeout=POLL_S)
    return None


def _tell() -> None:
    """Let nothing more begin, and nobody say anything but what this process says in the end."""
    tell_to_stop()
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda _: None


def _end(number: int, sentence: str) -> NoReturn:
    """End this process and those it started."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    terminal_line = sys.modules.get("trackstar.tasks.runtime.terminal_line")
    if terminal_line is not None:
        terminal_line.hide()
    sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)
    os._exit(128 + number)
