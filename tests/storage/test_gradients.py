import numpy as np
import pytest
from upath import UPath

from trackstar.storage import gradients
from trackstar.storage.errors import CorruptionError
from trackstar.storage.gradients import GradientReader, GradientWriter, as_stored

DIMS = {"attention.00": 6, "mlp.00": 4}


def _write(path, blocks, *, dtype="float32", chunk_rows=4, max_rows=None):
    num_rows = len(blocks["mlp.00"])
    writer = GradientWriter(path, DIMS, max_rows=max_rows or num_rows, chunk_rows=chunk_rows, dtype=dtype)
    for start in range(0, num_rows, 3):  # batches need not be chunks
        writer.append({name: rows[start : start + 3] for name, rows in blocks.items()})
    writer.close()


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
        np.testing.assert_array_equal(np.concatenate([r for _, r in reader.chunks(name, num_rows=3)]), rows)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_as_stored_are_those_that_are_read(tmp_path, dtype):
    blocks = _random_blocks(scale=3.0)
    _write(UPath(tmp_path), blocks, dtype=dtype)
    for name, rows in as_stored(blocks, dtype).items():
        np.testing.assert_array_equal(GradientReader(UPath(tmp_path)).rows(name, 0, 10), rows)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_float16_keeps_eleven_bits_at_any_gradient_scale(tmp_path, scale):
    blocks = _random_blocks(scale=scale)
    _write(UPath(tmp_path), blocks, dtype="float16")
    reader = GradientReader(UPath(tmp_path))
    for name, rows in blocks.items():
        np.testing.assert_allclose(reader.rows(name, 0, 10), rows, atol=2**-10 * 4 * scale)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_in_the_cache_are_the_same_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(gradients, "ROWS_IN_CACHE", 3)
    _write(UPath(tmp_path), _random_blocks(), dtype=dtype)
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
    with pytest.raises(CorruptionError, match=r"verify .* --repair"):
        reader.rows("mlp.00", 4, 8)


def test_a_missing_chunk_is_an_error_and_not_a_row_of_zeros(tmp_path):
    _write(UPath(tmp_path), _random_blocks())
    (tmp_path / "gradients.zarr" / "mlp.00" / "c" / "2" / "0").unlink()
    with pytest.raises(CorruptionError, match="lacks rows"):
        GradientReader(UPath(tmp_path)).rows("mlp.00", 0, 10)
