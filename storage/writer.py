"""One writer at a time: whoever changes index.json and what it names holds the index while it does.

Neither waits for the other, writer or reader: while an index is read, a writer leaves in it what is outdated.

The lock is the operating system's, on INDEX/index.lock, and ends with the process that holds it. An object store has no
such locks: there INDEX/index.lock.json is created only where it is absent, and one left by a killed writer has to be
deleted by a person.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from upath import UPath

from trackstar.storage.errors import InputError, LockedError
from trackstar.storage.layout import HOLDER, LOCK, is_local, location
from trackstar.storage.locks import NO_LOCKS_HERE, claimed, shared

TIMEOUT_VARIABLE = "TRACKSTAR_LOCK_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 1.0  # of an object store
SHOWN_CHARACTERS = 200

_changed_here: ContextVar[frozenset[str]] = ContextVar("indexes that are being changed here", default=frozenset())


@contextmanager
def changing(index: object) -> Iterator[None]:
    """Hold an index, to change it; a flow that runs another on the same index holds it once.

    Raises:
        LockedError: Another process held it for 60 s, or as long as ``TRACKSTAR_LOCK_TIMEOUT_S`` says.
    """
    path = location(index)
    if str(path) in _changed_here.get():
        yield
        return
    with _alone(path):
        token = _changed_here.set(_changed_here.get() | {str(path)})
        try:
            yield
        finally:
            _changed_here.reset(token)


@contextmanager
def reading(index: object) -> Iterator[None]:
    """Keep a writer from removing what an index was made of when this began; on an object store, keep nothing."""
    with shared(location(index)):
        yield


@contextmanager
def unread(index: UPath) -> Iterator[bool]:
    """Whether nobody reads an index; until the block ends, whoever begins to waits for it."""
    with claimed(index) if is_local(index) else nullcontext(True) as is_unread:
        yield is_unread


@contextmanager
def _alone(index: UPath) -> Iterator[None]:
    index.mkdir(parents=True, exist_ok=True)
    lock = _operating_system_lock(index) if is_local(index) else None
    if lock is None:
        with _marker(index):
            yield
        return
    try:
        (index / HOLDER).write_bytes(_this_process())
        yield
    finally:
        (index / HOLDER).unlink(missing_ok=True)
        lock.release()


def _operating_system_lock(index: UPath) -> FileLock | None:
    """The lock, held; None on a file system that has none."""
    lock = FileLock(str(index / LOCK), timeout=_timeout_s(), thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(index, _held_by(index), "try again when it is done, or stop it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        return None
    return lock


@contextmanager
def _marker(index: UPath) -> Iterator[None]:
    """Hold an index by a file that exists only while it is held."""
    marker, content = index / HOLDER, _this_process()
    deadline = time.monotonic() + _timeout_s()
    while not _created(marker, content):
        if time.monotonic() >= deadline:
            cure = f"try again when it is done; if that process is gone, delete {marker}"
            raise LockedError(index, _held_by(index), cure)
        time.sleep(POLL_INTERVAL_S)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if marker.read_bytes() == content:
                marker.unlink()


def _created(marker: UPath, content: bytes) -> bool:
    """Write a file that is not there yet."""
    try:
        marker.fs.pipe_file(marker.path, content, mode="create")
    except FileExistsError:
        return False
    return True


def _timeout_s() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"{TIMEOUT_VARIABLE} is {given!r}; give seconds, 0 or more, to wait for another writer")
    return seconds


def _this_process() -> bytes:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now(UTC).isoformat(" ", "seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}
    return json.dumps(holder).encode()


def _held_by(index: UPath) -> str:
    """Who changes an index, in words; the file may be absent, or anybody's."""
    try:
        holder = json.loads((index / HOLDER).read_bytes())
        words = "process {pid} on {host} since {since}, `{command}`".format_map(holder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        words = "another process"
    shown = "".join(letter if letter.isprintable() else "?" for letter in words)
    return f"is being changed by {shown[:SHOWN_CHARACTERS]}"
