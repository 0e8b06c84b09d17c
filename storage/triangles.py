"""The lower triangles of symmetric or triangular matrices: one Zarr array a block, in square tiles.

    NAME.zarr/
      attention.00   [d d] float64    tiles [TILE TILE], CRC-32C of each; those above the diagonal are not there
      mlp.00         …

Half of a symmetric matrix says it all, and a checksum of hardware speed is read at the speed of the disk: a large R is
read for every query set. A tile that is missing on or below the diagonal would read as NaN, never as a plausible zero.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
import zarr
from numpy import ndarray
from upath import UPath
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import BytesCodec, Crc32cCodec

from trackstar.storage.errors import CorruptionError
from trackstar.storage.manifest import CHECKSUM_BYTES, cure
from trackstar.storage.zarr_groups import damage_named, read_group, zarr_store

TILE = 512
FLOAT64_BYTES = 8


def create_triangles(path: UPath) -> None:
    """An empty group for blocks to be written to, each by a writer of its own."""
    zarr.open_group(zarr_store(path), mode="w")


def write_lower(path: UPath, block: str, matrix: ndarray) -> None:
    """Write the lower triangle of a block's matrix [d d] into the group at ``path``."""
    num_dims = len(matrix)
    tile = min(TILE, num_dims)
    array = zarr.open_group(zarr_store(path), mode="r+").create_array(
        block,
        shape=(num_dims, num_dims),
        chunks=(tile, tile),
        dtype="float64",
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        config={"write_empty_chunks": False},
        overwrite=True,  # a worker that was lost may have begun it
    )
    for start, stop in _bounds(num_dims, tile):
        array[start:stop, :stop] = matrix[start:stop, :stop]


def lower_bytes(num_dims: int) -> int:
    """What a block's tiles take on disk."""
    tile = min(TILE, num_dims)
    num_panels = ceil(num_dims / tile)
    return num_panels * (num_panels + 1) // 2 * (tile**2 * FLOAT64_BYTES + CHECKSUM_BYTES)


def read_lower(directory: UPath, name: str, block: str, *, out: ndarray | None = None) -> ndarray:
    """The lower triangle [d d] of a block, zero above the diagonal; added to ``out`` if that is given.

    Raises:
        CorruptionError: A tile is missing, or is not the one that was written.
    """
    array = read_group(directory, name)[block]
    total = np.zeros(array.shape) if out is None else out
    for start, stop in _bounds(len(total), array.chunks[0]):
        panel = total[start:stop, :stop] if out is None else np.empty((stop - start, stop))
        with damage_named(directory, f"{name}/{block}"):
            array.get_basic_selection((slice(start, stop), slice(stop)), out=NDBuffer.from_numpy_array(panel))
        if np.isnan(panel[0]).any(where=np.arange(stop) <= start):  # one entry of each tile of the panel at least
            raise CorruptionError(directory / name / block, "lacks a part", cure(directory))
        panel[:, start:] = np.tril(panel[:, start:])
        if out is not None:
            total[start:stop, :stop] += panel
    return total


def symmetric(lower: ndarray) -> ndarray:
    """The symmetric matrix of a lower triangle."""
    return lower + np.tril(lower, -1).T


def _bounds(num_dims: int, tile: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + tile, num_dims)) for start in range(0, num_dims, tile))
