"""The indexes that are served, each by a name, and each as it is now on disk."""

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from time import monotonic

from trackstar.storage.errors import InputError, StorageError
from trackstar.storage.layout import location
from trackstar.tasks.asking.open_index import OpenIndex, open_index
from trackstar.tasks.asking.settings import AskConfig

LOG = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0


def index_to_serve(path: str) -> str:
    """Where the index lies that answers for a path that was given."""
    return path


class ServedIndex:
    """An index, opened again when another has taken its place; until that is open, the old one answers.

    Attributes:
        num_reopened: How often that has happened.
    """

    def __init__(self, path: str, config: AskConfig, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self.path, self._config, self._look_every_s = path, config, look_every_s
        self._index = open_index(index_to_serve(path), config)
        self._lock, self._looked = threading.Lock(), monotonic()
        self.num_reopened = 0

    @property
    def opened(self) -> OpenIndex:
        """As it was last looked at."""
        return self._index

    def current(self) -> OpenIndex:
        """The index to ask now; one thread looks for a newer one, the others go on with the one that is open."""
        if monotonic() - self._looked >= self._look_every_s and self._lock.acquire(blocking=False):
            try:
                self._renew()
            finally:
                self._looked = monotonic()
                self._lock.release()
        return self._index

    def _renew(self) -> None:
        try:
            path = index_to_serve(self.path)
            if path != str(self._index.path) or not self._index.is_current():
                self._index = open_index(path, self._config)
                self.num_reopened += 1
        except (StorageError, InputError, OSError) as error:  # half written: the next look finds it whole
            LOG.warning("%s: the index that is open goes on answering", error)


class ServedIndexes:
    """Indexes by their names; nothing else is ever opened for a client."""

    def __init__(self, paths: Sequence[str], config: AskConfig, *, look_every_s: float = LOOK_EVERY_S) -> None:
        absolute = [str(location(path)) for path in paths]
        twice = next((path for path in absolute if absolute.count(path) > 1), None)
        if twice is not None:
            raise InputError(f"{twice} is given twice; name each index once")
        share = config.model_copy(update={"memory_bytes": config.memory_bytes // max(1, len(absolute))})
        self._served = {
            name: ServedIndex(path, share, look_every_s=look_every_s)
            for name, path in zip(short_names(absolute), absolute, strict=True)
        }

    def __iter__(self) -> Iterator[tuple[str, ServedIndex]]:
        return iter(self._served.items())

    def __getitem__(self, name: str | None) -> ServedIndex:
        """By name or by path; None is the first.

        Raises:
            InputError: No such index is served.
        """
        for known, served in self._served.items():
            if name in (None, known, served.path, str(served.opened.path)):
                return served
        raise InputError(f"no index {name!r} is served; choose among {', '.join(self._served)}")


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    parts = [PurePath(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-count:]).lstrip("/") for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
