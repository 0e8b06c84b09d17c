"""‖φ‖² of every document in every block, kept in its shard: all that unit vectors take where R_train is flat.

They are those of rows as they are stored, since these are what is scored.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.gradients import as_stored
from trackstar.storage.layout import NORMS, StoreAs
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays, write_arrays
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.numerics.curvature import squared_norms

SQUARED_NORMS = "squared_norms"  # [documents blocks], and their sums by block in a shard's facts


class NormWriter:
    """The norms of a shard that is being written.

    Args:
        blocks: In the order of the columns.
        store_as: What rows are stored as.
    """

    def __init__(self, blocks: Sequence[str], *, store_as: StoreAs) -> None:
        self._blocks, self._store_as = list(blocks), store_as
        self._parts = [np.empty((0, len(self._blocks)))]

    def append(self, vectors: Mapping[str, ndarray]) -> None:
        """Add the next rows of every block."""
        stored = as_stored(vectors, self._store_as)
        self._parts.append(np.stack([squared_norms(stored[block]) for block in self._blocks], axis=1))

    def close(self, draft: Draft) -> None:
        """Write them, and their sums into the facts."""
        norms = np.concatenate(self._parts)
        write_arrays(draft.path / NORMS, {SQUARED_NORMS: norms})
        draft.facts[SQUARED_NORMS] = dict(zip(self._blocks, norms.sum(axis=0).tolist(), strict=True))


def has_norms(shards: Sequence[Artifact]) -> bool:
    """Whether every shard keeps them, as those of earlier versions do not."""
    return all(SQUARED_NORMS in shard.facts for shard in shards)


def read_document_norms(shard: UPath) -> ndarray:
    """‖φ‖² of a shard's documents, one column a block."""
    return read_arrays(shard, NORMS)[SQUARED_NORMS]


def mean_squares(request: IndexedShards) -> dict[str, float]:
    """s of every block, the mean of φ_i² over coordinates and over documents that were not withdrawn.

    Raises:
        InputError: No document is left, or all gradients of a block are zero.
    """
    sums = np.sum([list(shard.facts[SQUARED_NORMS].values()) for shard in request.shards], axis=0)
    num_documents = request.num_documents
    for path, rows in request.withdrawn().items():
        sums = sums - read_document_norms(path)[rows].sum(axis=0)
        num_documents -= len(rows)
    if not num_documents:
        raise InputError(f"every document of {request.index} was withdrawn, so there is nothing to score; index others")
    found = {}
    for (block, dims), total in zip(request.block_dims.items(), sums, strict=True):
        if not 0 < total < float("inf"):
            raise InputError(
                f"the squared gradients of block {block} add up to {total}; some have to be above zero: leave its "
                "matrices out with --parameters"
            )
        found[block] = float(total) / num_documents / dims
    return found
