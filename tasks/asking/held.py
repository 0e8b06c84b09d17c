"""What is kept in memory between questions: whatever fits below a limit, first come, first kept."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from numpy import ndarray
from upath import UPath

from trackstar.storage.gradients import ROWS_AT_ONCE, GradientReader

FLOAT32_BYTES = 4


class Memory:
    """Keeps values by key while they fit; several threads may ask for one at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self._lock = limit_bytes, threading.Lock()
        self._slots: dict[Hashable, _Slot] = {}
        self._used = 0

    @property
    def used_bytes(self) -> int:
        return self._used

    def get(self, key: Hashable) -> Any | None:
        """The value of a key, or None where it is not kept."""
        slot = self._slots.get(key)
        return slot.content if slot is not None else None

    def keep(self, key: Hashable, num_bytes: int, load: Callable[[], Any]) -> Any | None:
        """The value of a key, loaded when it is asked for first; None where there is no room for it."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                if self._used + num_bytes > self.limit_bytes:
                    return None
                slot = self._slots[key] = _Slot()
                self._used += num_bytes
        try:
            return slot.value(load)
        except BaseException:
            with self._lock:
                if self._slots.pop(key, None) is not None:
                    self._used -= num_bytes
            raise


class _Slot:
    """One value: whoever comes first loads it, the others wait."""

    def __init__(self) -> None:
        self._lock, self.content = threading.Lock(), None

    def value(self, load: Callable[[], Any]) -> Any:
        with self._lock:
            if self.content is None:
                self.content = load()
            return self.content


class HeldRows:
    """The rows of a shard in memory, given as ``GradientReader`` gives them."""

    def __init__(self, blocks: Mapping[str, ndarray]) -> None:
        self._blocks = blocks
        self.num_rows = len(next(iter(blocks.values())))

    def row_parts(self, block: str, start: int, stop: int) -> Iterator[tuple[int, ndarray]]:
        yield start, self._blocks[block][start:stop]

    def windows(self) -> Iterator[tuple[int, int]]:
        return ((start, min(start + ROWS_AT_ONCE, self.num_rows)) for start in range(0, self.num_rows, ROWS_AT_ONCE))


def shard_rows(shard: UPath, num_rows: int, block_dims: Mapping[str, int], memory: Memory) -> HeldRows | GradientReader:
    """The rows of a shard: from memory where there is room for all of them, else from disk."""

    def load() -> HeldRows:
        reader = GradientReader(shard)
        return HeldRows({block: reader.rows(block, 0, reader.num_rows) for block in block_dims})

    num_bytes = FLOAT32_BYTES * num_rows * sum(block_dims.values())
    return memory.keep(("rows", str(shard)), num_bytes, load) or GradientReader(shard)
