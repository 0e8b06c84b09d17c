"""The gradient store: one Zarr group a shard, one array a block, one row a document.

    gradients.zarr/
      attention.00   [rows w] as the code stores a row      chunks [chunk_rows w], CRC-32C of every chunk
      mlp.00         …
      scales         [rows blocks] float32                  where the code keeps them

``storage/codes/`` has one file for each way of storing a row. Everything is read as float32.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import zarr
from numpy import ndarray
from upath import UPath
from zarr.codecs import BytesCodec, Crc32cCodec

from trackstar.storage.codes import CODES, Code, StoreAs
from trackstar.storage.layout import GRADIENTS
from trackstar.storage.zarr_groups import damage_named, read_group, zarr_store

SCALES = "scales"
CHUNK_BYTES = 1 << 23  # of one block's rows: large enough for an object store, small enough to hold a few
DECODED_BYTES = 1 << 26  # of the same rows as float32
ROWS_AT_ONCE = 1024
ROWS_IN_CACHE = 256  # that a core keeps between being decoded and being used


def rows_of_a_chunk(block_dims: Mapping[str, int], *, max_rows: int, store_as: StoreAs) -> int:
    """Rows that a chunk of a shard of at most ``max_rows`` holds, of every block."""
    dims = max(block_dims.values())
    return max(1, min(CHUNK_BYTES // CODES[store_as].row_bytes(dims), DECODED_BYTES // (4 * dims), max_rows))


class GradientWriter:
    """Appends rows to a shard that is being written.

    Args:
        directory: The artifact's draft directory.
        block_dims: Dimensions of each block, in the order that defines the columns of ``scales``.
        max_rows: An upper bound of the number of rows.
        store_as: The code that rows are stored by.
        chunk_rows: Rows of a chunk; by default as many as ``CHUNK_BYTES`` hold.
    """

    def __init__(
        self,
        directory: UPath,
        block_dims: Mapping[str, int],
        *,
        max_rows: int,
        store_as: StoreAs = "float32",
        chunk_rows: int | None = None,
    ) -> None:
        self._code = CODES[store_as]
        self._chunk_rows = chunk_rows or rows_of_a_chunk(block_dims, max_rows=max_rows, store_as=store_as)
        self._group = zarr.open_group(
            zarr_store(directory / GRADIENTS),
            mode="w",
            attributes={"blocks": dict(block_dims), "store_as": store_as},
        )
        kinds = {name: (self._code.width(dims), self._code.dtype) for name, dims in block_dims.items()}
        if self._code.has_scales:
            kinds[SCALES] = (len(block_dims), "float32")
        self._arrays = {name: self._create(name, max_rows, *kind) for name, kind in kinds.items()}
        self._pending = {name: np.empty((0, width), dtype) for name, (width, dtype) in kinds.items()}
        self._num_written = 0

    @property
    def num_rows(self) -> int:
        return self._num_written + len(next(iter(self._pending.values())))

    def append(self, vectors: Mapping[str, ndarray]) -> None:
        """Add the next rows of every block."""
        encoded = {name: self._code.encode(vectors[name]) for name in self._pending if name != SCALES}
        stored = {name: rows for name, (rows, _) in encoded.items()}
        if self._code.has_scales:
            stored[SCALES] = np.stack([scales for _, scales in encoded.values()], axis=1)
        self._pending = {
            name: np.concatenate([held, stored[name]]) if len(held) else stored[name]
            for name, held in self._pending.items()
        }
        self._flush((self.num_rows - self._num_written) // self._chunk_rows * self._chunk_rows)

    def close(self) -> None:
        """Write the last, partial chunk and give the arrays the number of rows that there are."""
        self._flush(self.num_rows - self._num_written)
        for array in self._arrays.values():
            array.resize((self._num_written, array.shape[1]))

    def _create(self, name: str, max_rows: int, width: int, dtype: str) -> zarr.Array:
        return self._group.create_array(
            name,
            shape=(max_rows, width),
            chunks=(min(self._chunk_rows, max(max_rows, 1)), width),
            dtype=dtype,
            serializer=BytesCodec(endian="little") if np.dtype(dtype).itemsize > 1 else BytesCodec(endian=None),
            compressors=[Crc32cCodec()],
            fill_value=float("nan") if dtype.startswith("float") else 0,
            dimension_names=("row", "dimension"),
            config={"write_empty_chunks": True},
        )

    def _flush(self, count: int) -> None:
        """Write the first ``count`` rows that are held: whole chunks, since part of one would be read and rewritten."""
        for name, held in self._pending.items():
            self._arrays[name][self._num_written : self._num_written + count] = held[:count]
            self._pending[name] = held[count:]
        self._num_written += count


class GradientReader:
    """Reads blocks of a finished shard, a few rows at a time, as float32."""

    def __init__(self, directory: UPath) -> None:
        self._directory = directory
        group = read_group(directory, GRADIENTS)
        self._dims: dict[str, int] = dict(group.attrs["blocks"])
        self.block_names = list(self._dims)
        self.code = CODES[group.attrs["store_as"]]
        self._arrays = dict(group.arrays())

    @property
    def num_rows(self) -> int:
        return self._arrays[self.block_names[0]].shape[0]

    @cached_property
    def _scales(self) -> ndarray | None:
        """Of all rows: a small part of what is read, which a read a batch would make slow."""
        return self._read(SCALES, 0, self.num_rows) if self.code.has_scales else None

    def rows(self, block: str, start: int, stop: int) -> ndarray:
        """Rows [start, stop) of a block.

        Raises:
            CorruptionError: A chunk is missing, or is not the one that was written.
        """
        stored, scales = self.stored(block, start, stop)
        if self.code.is_plain:
            return stored
        decoded = np.empty((len(stored), self._dims[block]), np.float32)
        for part in _parts(len(stored)):
            self.code.decode(stored[part], None if scales is None else scales[part], decoded[part])
        return decoded

    def row_parts(self, block: str, start: int, stop: int) -> Iterator[tuple[int, ndarray]]:
        """The same rows while they are in a core's cache: a few at a time, each overwritten by the next.

        What takes them in turn spares the memory a copy of them all; with each part comes the number of its first row.
        """
        stored, scales = self.stored(block, start, stop)
        if self.code.is_plain:
            yield from ((start + part.start, stored[part]) for part in _parts(len(stored)))
            return
        buffer = np.empty((min(ROWS_IN_CACHE, len(stored)), self._dims[block]), np.float32)
        for part in _parts(len(stored)):
            rows = buffer[: part.stop - part.start]
            self.code.decode(stored[part], None if scales is None else scales[part], rows)
            yield start + part.start, rows

    def windows(self) -> Iterator[tuple[int, int]]:
        """Runs [start, stop) of rows to read at a time: whole chunks, since part of one costs as much as all of it."""
        chunk_rows = self._arrays[self.block_names[0]].chunks[0]
        step = max(1, ROWS_AT_ONCE // chunk_rows) * chunk_rows
        return ((start, min(start + step, self.num_rows)) for start in range(0, self.num_rows, step))

    def stored(self, block: str, start: int, stop: int) -> tuple[ndarray, ndarray | None]:
        """Rows [start, stop) of a block as its code stores them, and their scales where it has any.

        Raises:
            CorruptionError: A chunk is missing, or is not the one that was written.
        """
        scales = None if self._scales is None else self._scales[start:stop, self.block_names.index(block)]
        return self._read(block, start, stop), scales

    def _read(self, name: str, start: int, stop: int) -> ndarray:
        with damage_named(self._directory, f"{GRADIENTS}/{name}"):
            return self._arrays[name][start:stop]


def as_stored(vectors: Mapping[str, ndarray], store_as: StoreAs) -> Mapping[str, ndarray]:
    """The rows of every block as a reader will give them."""
    code = CODES[store_as]
    return vectors if code.is_plain else {name: _as_decoded(code, rows) for name, rows in vectors.items()}


def _as_decoded(code: Code, rows: ndarray) -> ndarray:
    decoded = np.empty(rows.shape, np.float32)
    code.decode(*code.encode(rows), decoded)
    return decoded


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS_IN_CACHE, num_rows)) for start in range(0, num_rows, ROWS_IN_CACHE))
