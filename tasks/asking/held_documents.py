"""The documents of an index by position or id, their tables kept in memory as far as there is room."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import require_manifest
from trackstar.storage.tables import read_table
from trackstar.tasks.asking.answers import Document
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.settings import DOCUMENT_COLUMNS
from trackstar.tasks.models.document_tokens import DocumentTokens, kept_tokens

TEXT_EXPANSION = 4  # of a Parquet table in memory, at most, against its file


class HeldDocuments:
    """Reads documents where they are shown; withdrawn ones are not."""

    def __init__(self, candidates: Candidates, memory: Memory) -> None:
        self._candidates, self._memory = candidates, memory
        self._shards = list(candidates.shards())
        self._starts = [start for _, start in self._shards]

    def at(self, positions: Iterable[int]) -> dict[int, Document]:
        """The documents at some positions."""
        found = {}
        for position in sorted(set(map(int, positions))):
            path, row = self.place(position)
            found[position] = _document(self._table(path), row, self._file(path))
        return found

    def tokens(self, positions: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> list[DocumentTokens]:
        """The tokens of the documents at some positions, and which of them count, as they were indexed."""
        rows = [self._table(path)[row] for path, row in map(self.place, positions)]
        return kept_tokens(tokenizer, pl.concat(rows, how="diagonal"))

    def place(self, position: int) -> tuple[UPath, int]:
        """The shard and the row of a position."""
        path, start = self._shards[int(np.searchsorted(self._starts, position, side="right")) - 1]
        return path, position - start

    def positions(self, ids: Sequence[str]) -> dict[str, int]:
        """The position of each id, by the order of the ids.

        Raises:
            InputError: An id is that of no document, or of one that was withdrawn.
        """
        wanted, found = pl.Series(list(ids), dtype=pl.String), {}
        for path, start in self._shards:
            own = self._table(path)["id"]
            rows = np.flatnonzero(own.is_in(wanted.implode()).to_numpy())
            live = np.setdiff1d(rows, self._candidates.withdrawn.get(path, []), assume_unique=True)
            found |= {own[int(row)]: start + int(row) for row in live}
        missing = [id_ for id_ in ids if id_ not in found]
        if missing:
            raise InputError(f"the index has no document {missing[0]!r}, or it was withdrawn; choose among its ids")
        return {id_: found[id_] for id_ in ids}

    def around(self, position: int, count: int) -> list[int]:
        """The positions of a document and of up to ``count`` on either side of it in its shard."""
        place = int(np.searchsorted(self._starts, position, side="right"))
        first = self._starts[place - 1]
        end = self._starts[place] if place < len(self._starts) else self._candidates.num_positions
        return self._candidates.live(max(first, position - count), min(end, position + count + 1)).tolist()

    def _table(self, path: UPath) -> pl.DataFrame:
        load = partial(read_table, path, DOCUMENTS)
        num_bytes = TEXT_EXPANSION * (path / DOCUMENTS).stat().st_size
        held = self._memory.keep(("documents", path), num_bytes, load)
        return load() if held is None else held

    def _file(self, path: UPath) -> str:
        load = lambda: require_manifest(path).identity["shard"]["id_prefix"]  # noqa: E731
        return self._memory.keep(("file", path), 0, load)


def _document(table: pl.DataFrame, row: int, file: str) -> Document:
    values = table.row(row, named=True)
    columns = {name: value for name, value in values.items() if name not in DOCUMENT_COLUMNS}
    return Document(id=values["id"], text=values["text"], file=file, row=values["row"], columns=columns)
