"""The gradient store: one Zarr group a shard, one array a block, one row a document.

    gradients.zarr/
      attention.00   [rows d_b] float32 or float16    chunks [chunk_rows d_b], CRC-32C of every chunk
      mlp.00         …
      scales         [rows blocks] float32            float16 only: a row of a block is stored divided by its scale

A gradient's size varies over many orders of magnitude, more than float16 holds, so each stored row has root mean
square 1 and its scale beside it. A missing chunk would read as NaN, never as a plausible zero.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import zarr
from numpy import ndarray
from upath import UPath
from zarr.codecs import BytesCodec, Crc32cCodec

from trackstar.storage.errors import CorruptionError
from trackstar.storage.layout import GRADIENTS

StoreDtype = Literal["float32", "float16"]
SCALES = "scales"
ROWS_IN_CACHE = 256  # that a core keeps between being widened and being used


class GradientWriter:
    """Appends rows to a shard that is being written.

    Args:
        directory: The artifact's draft directory.
        block_dims: Dimensions of each block, in the order that defines the columns of ``scales``.
        max_rows: An upper bound of the number of rows.
        chunk_rows: Rows of a chunk.
        dtype: What is stored.
    """

    def __init__(
        self, directory: UPath, block_dims: Mapping[str, int], *, max_rows: int, chunk_rows: int, dtype: StoreDtype
    ) -> None:
        self._group = zarr.open_group(
            zarr_store(directory / GRADIENTS), mode="w", attributes={"blocks": list(block_dims)}
        )
        self._dtype, self._chunk_rows = dtype, chunk_rows
        shapes = dict(block_dims)
        if dtype == "float16":
            shapes[SCALES] = len(block_dims)
        self._arrays = {
            name: self._group.create_array(
                name,
                shape=(max_rows, width),
                chunks=(min(chunk_rows, max(max_rows, 1)), width),
                dtype="float32" if name == SCALES else dtype,
                serializer=BytesCodec(endian="little"),
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
                dimension_names=("row", "dimension"),
                config={"write_empty_chunks": True},
            )
            for name, width in shapes.items()
        }
        self._pending = {name: np.empty((0, dims), np.float32) for name, dims in block_dims.items()}
        self._num_written = 0

    @property
    def num_rows(self) -> int:
        return self._num_written + len(next(iter(self._pending.values())))

    def append(self, vectors: Mapping[str, ndarray]) -> None:
        """Add the next rows of every block."""
        self._pending = {
            name: np.concatenate([held, vectors[name]]) if len(held) else vectors[name]
            for name, held in self._pending.items()
        }
        self._flush((self.num_rows - self._num_written) // self._chunk_rows * self._chunk_rows)

    def close(self) -> None:
        """Write the last, partial chunk and give the arrays the number of rows that there are."""
        self._flush(self.num_rows - self._num_written)
        for array in self._arrays.values():
            array.resize((self._num_written, array.shape[1]))

    def _flush(self, count: int) -> None:
        """Write the first ``count`` rows that are held: whole chunks, since part of one would be read and rewritten."""
        ready = {name: held[:count] for name, held in self._pending.items()}
        for name, rows in (ready if self._dtype == "float32" else _to_float16(ready)).items():
            self._arrays[name][self._num_written : self._num_written + count] = rows
        self._pending = {name: held[count:] for name, held in self._pending.items()}
        self._num_written += count


class GradientReader:
    """Reads blocks of a finished shard, a few rows at a time, as float32."""

    def __init__(self, directory: UPath) -> None:
        self._directory = directory
        try:
            self._group = zarr.open_group(zarr_store(directory / GRADIENTS), mode="r")
            self.block_names: list[str] = list(self._group.attrs["blocks"])
            self._arrays = dict(self._group.arrays())
        except (OSError, ValueError, KeyError, TypeError) as error:  # whatever zarr makes of absent or damaged metadata
            raise self._corruption("zarr.json", f"is missing or damaged ({error})") from error

    @property
    def num_rows(self) -> int:
        return self._array(self.block_names[0]).shape[0]

    @cached_property
    def _scales(self) -> ndarray:
        """Of all rows: a small part of what is read, which a read a batch would make slow."""
        return self._read(SCALES, 0, self.num_rows)

    def rows(self, block: str, start: int, stop: int) -> ndarray:
        """Rows [start, stop) of a block.

        Raises:
            CorruptionError: A chunk is missing or fails its checksum.
        """
        stored = self._stored_rows(block, start, stop)
        if SCALES not in self._arrays:
            return stored
        widened = np.empty(stored.shape, np.float32)
        for part in _parts(len(stored)):
            _widen(stored[part], self._scales_of(block)[start:stop][part], out=widened[part])
        return widened

    def row_parts(self, block: str, start: int, stop: int) -> Iterator[tuple[int, ndarray]]:
        """The same rows while they are in a core's cache: a few at a time, each overwritten by the next.

        What takes them in turn spares the memory a copy of them all; with each part comes the number of its first row.
        """
        stored = self._stored_rows(block, start, stop)
        buffer = np.empty((min(ROWS_IN_CACHE, len(stored)), stored.shape[1]), np.float32)
        for part in _parts(len(stored)):
            rows = stored[part]
            if SCALES in self._arrays:
                rows = buffer[: len(rows)]
                _widen(stored[part], self._scales_of(block)[start:stop][part], out=rows)
            yield start + part.start, rows

    def chunks(self, block: str, *, num_rows: int) -> Iterator[tuple[int, ndarray]]:
        """All rows of a block, ``num_rows`` at a time, with the index of the first."""
        for start in range(0, self.num_rows, num_rows):
            yield start, self.rows(block, start, min(start + num_rows, self.num_rows))

    def _scales_of(self, block: str) -> ndarray:
        return self._scales[:, self.block_names.index(block)]

    def _stored_rows(self, block: str, start: int, stop: int) -> ndarray:
        stored = self._read(block, start, stop)
        # A chunk holds whole rows and no stored gradient is NaN, so a missing chunk shows in the first column.
        if np.isnan(stored[:, :1]).any():
            raise self._corruption(block, "lacks rows that were written")
        return stored

    def _read(self, name: str, start: int, stop: int) -> ndarray:
        try:
            return self._array(name)[start:stop]
        except (ValueError, TypeError) as error:  # a checksum or a size that does not fit
            raise self._corruption(name, f"is damaged ({error})") from error

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            raise self._corruption(name, "is missing or has lost its metadata")
        return self._arrays[name]

    def _corruption(self, name: str, problem: str) -> CorruptionError:
        index = self._directory.parent.parent
        cure = f"run `trackstar verify {index} --repair`, then index again: only this shard is rebuilt"
        return CorruptionError(self._directory / GRADIENTS / name, problem, cure)


def as_stored(vectors: Mapping[str, ndarray], dtype: StoreDtype) -> Mapping[str, ndarray]:
    """The rows of every block as a reader will give them."""
    if dtype == "float32":
        return vectors
    stored = _to_float16(vectors)
    scales = stored.pop(SCALES)
    return {name: rows * scales[:, [column]] for column, (name, rows) in enumerate(stored.items())}


def zarr_store(path: UPath) -> object:
    """What zarr opens: a directory name, or the file system of an object store."""
    if path.protocol in ("", "file"):
        return str(path)
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options))


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS_IN_CACHE, num_rows)) for start in range(0, num_rows, ROWS_IN_CACHE))


def _widen(stored: ndarray, scales: ndarray, *, out: ndarray) -> None:
    """float16 rows times their scales, as float32; torch widens several times as fast as numpy."""
    torch.from_numpy(out).copy_(torch.from_numpy(stored)).mul_(torch.from_numpy(scales)[:, None])


def _to_float16(vectors: Mapping[str, ndarray]) -> dict[str, ndarray]:
    stored, scales = {}, []
    for name, rows in vectors.items():
        scale = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1)).astype(np.float32)
        scale[scale == 0] = 1.0
        stored[name] = (rows / scale[:, None]).astype(np.float16)
        scales.append(scale)
    return {**stored, SCALES: np.stack(scales, axis=1)}
