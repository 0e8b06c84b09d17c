"""One writer at a time, whoever asks; the lock ends with its process; readers keep what they read."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time

import pytest
from upath import UPath

from trackstar.storage import writer
from trackstar.storage.errors import InputError, LockedError
from trackstar.storage.layout import HOLDER, LOCK
from trackstar.storage.writer import TIMEOUT_VARIABLE, changing, reading, unread

PROCESSES = multiprocessing.get_context("spawn")
START_TIMEOUT_S = 60


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
    return UPath(tmp_path) / "index"


def hold(index, connection):
    with changing(index):
        connection.send("held")
        connection.recv()


@pytest.fixture
def holder(index):
    """Another process that changes the index, and a function that lets it end."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(str(index), theirs))
    process.start()
    assert ours.poll(START_TIMEOUT_S)
    yield process, lambda: ours.send("end")
    process.kill()
    process.join()


def take(index):
    with changing(index):
        return True


def test_a_second_writer_waits_and_is_then_told_who_holds_the_index(index, holder):
    process, end = holder
    expected = rf"index is being changed by process {process.pid} on \S+ since 20\S+ \S+, `.+`; try again when it is"
    started = time.monotonic()
    with pytest.raises(LockedError, match=expected):
        take(index)
    assert time.monotonic() - started >= 0.2
    end()
    process.join()
    assert take(index)
    assert not (index / HOLDER).exists()


def test_a_writer_that_waits_long_enough_gets_its_turn(index, holder, monkeypatch):
    _, end = holder
    monkeypatch.setenv(TIMEOUT_VARIABLE, "30")
    threading.Timer(0.3, end).start()
    assert take(index)


def test_a_killed_writer_holds_nothing(index, holder):
    process, _ = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (index / HOLDER).exists()  # what it left behind keeps nobody out
    assert take(index)
    assert [path.name for path in index.iterdir()] == [LOCK]


def test_threads_of_one_process_exclude_each_other_and_a_flow_within_a_flow_does_not(index):
    refused = []

    def attempt():
        try:
            take(index)
        except LockedError as error:
            refused.append(error)

    with changing(index):
        assert take(index)
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        assert (index / HOLDER).exists()
    assert len(refused) == 1
    assert f"process {os.getpid()} " in str(refused[0])


def test_one_index_does_not_keep_another_waiting(index):
    with changing(index):
        assert take(index.parent / "another")


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"\xff", b'{"pid": 1}', b'{"pid": 1, "host": null'])
def test_whatever_the_holders_file_says_the_sentence_is_one(index, content):
    with changing(index):
        (index / HOLDER).write_bytes(content)
        with pytest.raises(LockedError, match="is being changed by another process; try again") as caught:
            writer._operating_system_lock(index)
    assert "\n" not in str(caught.value)


def test_a_hostile_holder_writes_nothing_to_a_terminal(index):
    with changing(index):
        hostile = {"pid": 1, "host": "\x1b]0;title\x07", "since": "now\n", "command": "x" * 10_000}
        (index / HOLDER).write_text(json.dumps(hostile))
        with pytest.raises(LockedError) as caught:
            writer._operating_system_lock(index)
    assert re.search(r"[\x00-\x1f]", str(caught.value)) is None
    assert len(str(caught.value)) < 500


def test_readers_keep_out_no_writer_and_are_known_to_it(index):
    with changing(index):
        with unread(index) as is_unread:
            assert is_unread
        with reading(index), reading(index), unread(index) as is_unread:
            assert not is_unread
        with unread(index) as is_unread:
            assert is_unread


def test_a_reader_that_comes_while_something_is_removed_waits_for_the_end_of_that(index):
    order = []

    def read():
        with reading(index):
            order.append("read")

    with changing(index), unread(index) as is_unread:
        assert is_unread
        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.2)
        order.append("removed")
    thread.join()
    assert order == ["removed", "read"]


def test_reading_what_is_not_there_is_for_those_who_read_to_refuse(index):
    with reading(index):
        assert not index.exists()


def test_on_a_store_without_locks_a_file_stands_for_the_lock_and_says_how_to_end_it(monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0")
    index = UPath("memory://bucket/index")
    with changing(index):
        assert take(index)  # the same flow, once more
        with (
            pytest.raises(
                LockedError, match=r"if that process is gone, delete memory://bucket/index/index\.lock\.json"
            ),
            writer._marker(index),
        ):
            pass
    assert not (index / HOLDER).exists()
    with unread(index) as is_unread, reading(index):
        assert is_unread
    with changing(index):
        (index / HOLDER).write_bytes(b"another took over, when a person had deleted ours")
    assert (index / HOLDER).exists()
    (index / HOLDER).unlink()


def test_a_file_system_without_locks_has_the_file_instead(index, monkeypatch):
    def no_lock(lock):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("trackstar.storage.writer.FileLock.acquire", no_lock)
    with changing(index):
        with pytest.raises(LockedError, match="if that process is gone, delete"), writer._marker(index):
            pass
        assert (index / HOLDER).exists()
    assert not (index / HOLDER).exists()


@pytest.mark.parametrize("value", ["", "soon", "nan", "-1"])
def test_a_time_to_wait_that_is_none_is_refused(index, monkeypatch, value):
    monkeypatch.setenv(TIMEOUT_VARIABLE, value)
    with pytest.raises(InputError, match=f"{TIMEOUT_VARIABLE} is '{value}'; give seconds"):
        take(index)
