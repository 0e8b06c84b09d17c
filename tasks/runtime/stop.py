"""A run that is told to stop: long loops ask between two pieces of work, and nothing more is begun."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")

CHECK_INTERVAL_S = 0.5  # where work is waited for that is done elsewhere

_told = threading.Event()


class Stopped(BaseException):
    """The run was told to stop. No Exception: what handles failures has nothing to handle here."""


def tell_to_stop() -> None:
    """Make every later ``check_stop`` of this process raise."""
    _told.set()


def check_stop() -> None:
    """Go on, unless the run was told to stop.

    Raises:
        Stopped: It was.
    """
    if _told.is_set():
        raise Stopped


def unless_stopped(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after another ``check_stop``."""
    for item in items:
        check_stop()
        yield item


def take_or_stop(queue: SimpleQueue[Item]) -> Item:
    """Wait for the next item, however long it takes, unless the run is told to stop."""
    while True:
        check_stop()
        try:
            return queue.get(timeout=CHECK_INTERVAL_S)
        except Empty:
            continue
