"""The documents that may be retrieved, by their positions in the corpus; those that were withdrawn keep theirs.

A position is all that a pass over the corpus keeps of a document. Ids are read at the end, of the few that were kept.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import Artifact
from trackstar.storage.tables import read_table
from trackstar.tasks.index.withdrawals import withdrawn_rows


class Candidates:
    """The documents of some shards, in their order.

    Attributes:
        paths: Of the shards that have documents.
        num_positions: Number of documents, withdrawn ones included.
        withdrawn: The rows of withdrawn documents of each shard that has any.
    """

    def __init__(self, shards: Sequence[Artifact], index: str, tombstones: Artifact | None) -> None:
        shards = [shard for shard in shards if shard.facts["num_documents"]]
        ends = np.cumsum([0, *(shard.facts["num_documents"] for shard in shards)]).tolist()
        self._starts, self.num_positions = ends[:-1], ends[-1]
        self.paths: list[UPath] = [shard.path(index) for shard in shards]
        self.withdrawn = withdrawn_rows(self.paths, tombstones, index)
        withdrawn = [start + self.withdrawn[path] for path, start in self.shards() if path in self.withdrawn]
        self._withdrawn = np.concatenate([np.empty(0, np.int64), *withdrawn])

    @property
    def num_live(self) -> int:
        return self.num_positions - len(self._withdrawn)

    def shards(self) -> Iterator[tuple[UPath, int]]:
        """Each shard, and the position of its first document."""
        return zip(self.paths, self._starts, strict=True)

    def live(self, start: int, stop: int) -> ndarray:
        """The positions in [start, stop) whose documents were not withdrawn, ascending."""
        return np.setdiff1d(np.arange(start, stop), self._withdrawn, assume_unique=True)

    def ids_at(self, positions: ndarray) -> pl.Series:
        """The ids at some positions, ascending; only their shards are read."""
        of_shards = np.split(positions, np.searchsorted(positions, self._starts[1:]))
        parts = [
            read_table(path, DOCUMENTS)["id"].gather(of_shard - start)
            for (path, start), of_shard in zip(self.shards(), of_shards, strict=True)
            if len(of_shard)
        ]
        return pl.concat([pl.Series("id", [], dtype=pl.String), *parts])
