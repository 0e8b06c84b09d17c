"""Being told to stop: every kind of loop ends between two pieces of its work."""

import threading
from queue import SimpleQueue

import pytest

from trackstar.tasks.runtime import dask, stop
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.terminal_line import step


@pytest.fixture
def told(monkeypatch):
    """What tells this process to stop; afterwards it is not told any more."""
    event = threading.Event()
    monkeypatch.setattr(stop, "_told", event)
    return stop.tell_to_stop


def test_a_loop_over_items_ends_at_the_next_item(told):
    items = stop.unless_stopped(range(10))
    assert [next(items), next(items)] == [0, 1]
    told()
    with pytest.raises(stop.Stopped):
        next(items)


def test_progress_that_is_told_ends_the_work(told):
    with progress("documents", total=2, unit="documents") as advance:
        advance(1)
        told()
        with pytest.raises(stop.Stopped):
            advance(1)


def test_no_step_begins(told):
    told()
    with pytest.raises(stop.Stopped), step("a step"):
        pytest.fail("it began")


def test_waiting_for_an_item_ends(told):
    threading.Timer(0.1, told).start()
    with pytest.raises(stop.Stopped):
        stop.take_or_stop(SimpleQueue())


def test_dask_begins_no_further_part(told):
    seen = []

    def record(number):
        seen.append(number)
        told()

    with pytest.raises(stop.Stopped):
        dask.compute([dask.part(record, number) for number in range(1000)], where=dask.LOCAL)
    assert len(seen) < 1000


def test_no_failure_handler_takes_it_for_a_failure():
    assert not issubclass(stop.Stopped, Exception)
