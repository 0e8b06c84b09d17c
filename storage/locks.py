"""Locks of the operating system on directories: on a draft while it is written, on an index while it is read.

A lock ends with the process that holds it, however that ends, so that nothing has to be cleaned up after kill -9.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from trackstar.storage.layout import is_local

# What some network file systems answer; NFS takes no exclusive lock on what is open for reading alone: EBADF.
NO_LOCKS_HERE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}


@contextmanager
def claimed(directory: UPath) -> Iterator[bool]:
    """Hold a local directory alone, and say whether that succeeded: not where another holds it, or it is gone.

    On a file system without locks it always succeeds.
    """
    descriptor = _open(directory)
    if descriptor is None:
        yield False
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_still_there(descriptor, directory)
    finally:
        os.close(descriptor)


@contextmanager
def shared(directory: UPath) -> Iterator[None]:
    """Hold a local directory together with others; wait for whoever holds it alone. Elsewhere, hold nothing."""
    descriptor = _open(directory) if is_local(directory) else None
    try:
        if descriptor is not None:
            _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_held(directory: UPath) -> bool:
    """Whether a living process holds a directory; where there are no locks, nobody is known to."""
    descriptor = _open(directory) if is_local(directory) else None
    if descriptor is None:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _open(directory: UPath) -> int | None:
    try:
        return os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
    return True


def _is_still_there(descriptor: int, directory: UPath) -> bool:
    """Whether what was opened still has this name: before it was locked, another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(directory.path).stat())
    except FileNotFoundError:
        return False
