"""A few threads that answer, and a queue of bounded length before them."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import Any

from trackstar.tasks.asking.gradient_scan import Cancelled


class Busy(Exception):
    """As many wait as may."""


class Ticket:
    """One piece of work, from when it is handed in.

    Attributes:
        future: Its result.
        done: Set once there is one; of the event loop that handed it in.
    """

    def __init__(self, timeout_s: float) -> None:
        self.done, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._deadline, self._stopped = monotonic() + timeout_s, threading.Event()
        self.future: Future[Any] = Future()

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - monotonic())

    def is_stopped(self) -> bool:
        """Whether nobody waits for it any more, or its time is over."""
        return self._stopped.is_set() or not self.seconds_left

    def stop(self) -> None:
        """Leave the queue; work that has begun ends when it next asks."""
        self._stopped.set()
        self.future.cancel()

    def tell(self, function: Callable[..., Any], *values: Any) -> None:
        """Call a function in the loop of whoever waits, if that still runs."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *values)


class Desk:
    """Takes on as much work as its threads and its queue have room for."""

    def __init__(self, name: str, *, threads: int, queue: int, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room, self._timeout_s = threads + queue, timeout_s
        self._tickets: set[Ticket] = set()
        self._lock = threading.Lock()

    @property
    def num_tickets(self) -> int:
        """Pieces of work that wait or are under way."""
        return len(self._tickets)

    def take(self, work: Callable[[Ticket], Any]) -> Ticket:
        """Hand in work, which gets its ticket to ask whether it should go on.

        Raises:
            Busy: There is no room.
        """
        ticket = Ticket(self._timeout_s)

        def begin() -> Any:
            if ticket.is_stopped():
                raise Cancelled("nobody waits for it any more")
            return work(ticket)

        with self._lock:
            if len(self._tickets) >= self._room:
                raise Busy
            self._tickets.add(ticket)
        ticket.future = self._pool.submit(begin)
        ticket.future.add_done_callback(lambda _: self._finish(ticket))
        return ticket

    def close(self) -> None:
        """Stop all work that asks whether it should go on, and take no more."""
        for ticket in list(self._tickets):
            ticket.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, ticket: Ticket) -> None:
        with self._lock:
            self._tickets.discard(ticket)
        ticket.tell(ticket.done.set)
