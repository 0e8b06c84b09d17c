"""Whether a directory is still being written by a living process: the operating system's own lock on it says so.

The lock ends with the process that holds it, however that ends, so that nothing has to be cleaned up after kill -9.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from upath import UPath

NO_LOCKS_HERE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # some network file systems


@contextmanager
def held(directory: UPath) -> Iterator[None]:
    """Hold a local directory's lock; on a file system without locks, hold nothing."""
    descriptor = os.open(directory.path, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_held(directory: UPath) -> bool:
    """Whether a living process holds a directory; where there are no locks, nobody is known to."""
    if directory.protocol not in ("", "file"):
        return False
    try:
        descriptor = os.open(directory.path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        _lock(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
