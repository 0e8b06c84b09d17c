import shutil

import numpy as np
import pytest
from upath import UPath

from trackstar.storage import gradients
from trackstar.storage.codes import CODES
from trackstar.storage.errors import CorruptionError
from trackstar.storage.gradients import GradientReader, GradientWriter, as_stored
from trackstar.storage.manifest import Draft, write_manifest

DIMS = {"attention.00": 6, "mlp.00": 4}


def _write(path, blocks, *, store_as="float32", chunk_rows=4, max_rows=None):
    num_rows = len(blocks["mlp.00"])
    writer = GradientWriter(path, DIMS, max_rows=max_rows or num_rows, chunk_rows=chunk_rows, store_as=store_as)
    for start in range(0, num_rows, 3):  # batches need not be chunks
        writer.append({name: rows[start : start + 3] for name, rows in blocks.items()})
    writer.close()
    write_manifest(Draft(path), kind="shards", identity={})


def _random_blocks(num_rows=10, scale=1.0):
    rng = np.random.default_rng(0)
    return {name: (scale * rng.normal(size=(num_rows, dims))).astype(np.float32) for name, dims in DIMS.items()}


def test_float32_rows_come_back_bit_for_bit(tmp_path):
    blocks = _random_blocks()
    _write(UPath(tmp_path), blocks, max_rows=13)  # three documents were quarantined
    reader = GradientReader(UPath(tmp_path))
    assert (reader.num_rows, reader.block_names) == (10, list(DIMS))
    for name, rows in blocks.items():
        np.testing.assert_array_equal(reader.rows(name, 0, 10), rows)
        np.testing.assert_array_equal(np.concatenate([reader.rows(name, *window) for window in reader.windows()]), rows)


@pytest.mark.parametrize("dtype", CODES)
def test_rows_as_stored_are_those_that_are_read(tmp_path, dtype):
    blocks = _random_blocks(scale=3.0)
    _write(UPath(tmp_path), blocks, store_as=dtype)
    for name, rows in as_stored(blocks, dtype).items():
        np.testing.assert_array_equal(GradientReader(UPath(tmp_path)).rows(name, 0, 10), rows)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_float16_keeps_eleven_bits_at_any_gradient_scale(tmp_path, scale):
    blocks = _random_blocks(scale=scale)
    _write(UPath(tmp_path), blocks, store_as="float16")
    reader = GradientReader(UPath(tmp_path))
    for name, rows in blocks.items():
        np.testing.assert_allclose(reader.rows(name, 0, 10), rows, atol=2**-10 * 4 * scale)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_in_the_cache_are_the_same_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(gradients, "ROWS_IN_CACHE", 3)
    _write(UPath(tmp_path), _random_blocks(), store_as=dtype)
    reader = GradientReader(UPath(tmp_path))
    for name in DIMS:
        parts = [(first, rows.copy()) for first, rows in reader.row_parts(name, 1, 9)]
        assert [first for first, _ in parts] == [1, 4, 7]
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), reader.rows(name, 1, 9))


def test_a_flipped_bit_is_noticed_on_read_and_the_cure_is_named(tmp_path):
    _write(UPath(tmp_path), _random_blocks())
    chunk = tmp_path / "gradients.zarr" / "mlp.00" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 0x10
    chunk.write_bytes(bytes(content))
    reader = GradientReader(UPath(tmp_path))
    reader.rows("mlp.00", 0, 4)
    with pytest.raises(CorruptionError, match=r"mlp.00/c/1/0 differs .* verify .* --repair"):
        reader.rows("mlp.00", 4, 8)


def test_a_missing_chunk_is_an_error_and_not_a_row_of_zeros(tmp_path):
    _write(UPath(tmp_path), _random_blocks())
    (tmp_path / "gradients.zarr" / "mlp.00" / "c" / "2" / "0").unlink()
    with pytest.raises(CorruptionError, match=r"mlp.00/c/2/0 is missing"):
        GradientReader(UPath(tmp_path)).rows("mlp.00", 0, 10)


@pytest.mark.parametrize("other", [1, 2], ids=["from another shard", "from another place of the shard"])
def test_a_chunk_whose_own_checksum_is_right_is_refused_where_it_was_not_written(tmp_path, other):
    for number in (0, 1):
        _write(UPath(tmp_path) / str(number), _random_blocks(scale=1 + number))
    chunks = tmp_path / "0" / "gradients.zarr" / "mlp.00" / "c"
    taken = tmp_path / "1" / "gradients.zarr" / "mlp.00" / "c" / "0" / "0" if other == 1 else chunks / "1" / "0"
    shutil.copy(taken, chunks / "0" / "0")
    with pytest.raises(CorruptionError, match=r"mlp.00/c/0/0 is not the chunk that was written"):
        GradientReader(UPath(tmp_path) / "0").rows("mlp.00", 0, 4)


def test_a_flipped_bit_in_a_shape_is_refused_before_anything_is_allocated(tmp_path):
    _write(UPath(tmp_path), _random_blocks())
    metadata = tmp_path / "gradients.zarr" / "mlp.00" / "zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b"10,", b"70,"))
    with pytest.raises(CorruptionError, match=r"mlp.00/zarr.json differs from what was written"):
        GradientReader(UPath(tmp_path))


def test_a_store_whose_chunks_end_in_no_checksum_is_never_completed(tmp_path):
    _write(UPath(tmp_path), _random_blocks())
    (tmp_path / "gradients.zarr" / "mlp.00" / "c" / "0" / "0").write_bytes(b"sixteen bytes...")
    with pytest.raises(AssertionError, match="does not end in its CRC-32C"):
        write_manifest(Draft(UPath(tmp_path)), kind="shards", identity={})
