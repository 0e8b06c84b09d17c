"""Files that appear whole or not at all; what a writer that was killed left of one is cleared by the next writer of it.

A local file is written under a name of its own, and is locked by the operating system for as long as its writer lives.
"""

import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from upath import UPath

NO_LOCKS_HERE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # some network file systems


@contextmanager
def write_atomically(path: UPath) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends well; an object store's write does so by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.protocol not in ("", "file"):
        with path.open("wb") as file:
            yield file
        return
    for leftover in leftovers(path):
        leftover.unlink(missing_ok=True)
    partial, file = _open_partial(path)
    with file:  # closed, and with it unlocked, only when it has its name
        try:
            yield file
            file.flush()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def leftovers(path: UPath) -> list[UPath]:
    """What writers of a local file that are gone left beside it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.partial-[0-9a-f]{{8}}")
    found = [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    return [entry for entry in found if not _is_being_written(entry)]


def _open_partial(path: UPath) -> tuple[UPath, BinaryIO]:
    while True:
        partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
        file = partial.open("wb")
        if _lock(file) and _has_name(file, partial):
            return partial, file
        file.close()  # before it was locked, another process took it for a leftover


def _is_being_written(partial: UPath) -> bool:
    try:
        with partial.open("rb") as file:
            return not _lock(file)
    except FileNotFoundError:  # its writer has just given it its name
        return True


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else holds a file; where there are no locks, nobody is known to."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
    return True


def _has_name(file: BinaryIO, path: UPath) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(path.path).stat())
    except FileNotFoundError:
        return False
