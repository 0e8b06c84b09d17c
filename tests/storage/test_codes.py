"""Each way of storing rows gives back what it promises, and nothing outside its file knows how."""

import numpy as np
import pytest
from upath import UPath

from trackstar.storage.codes import CODES
from trackstar.storage.gradients import GradientReader, GradientWriter
from trackstar.storage.manifest import Draft, write_manifest


def decoded(code, rows):
    stored, scales = code.encode(rows)
    out = np.full(rows.shape, np.nan, np.float32)
    code.decode(stored, scales, out)
    return out


def random_rows(num_rows=7, num_dims=13, scale=1.0):
    """Rows whose sizes are orders of magnitude apart."""
    rows = np.random.default_rng(0).normal(size=(num_rows, num_dims))
    return (rows * scale * 10.0 ** np.arange(-3, num_rows - 3)[:, None]).astype(np.float32)


def write(directory, blocks, **settings):
    writer = GradientWriter(directory, {name: rows.shape[1] for name, rows in blocks.items()}, **settings)
    for start in range(0, 11, 3):  # batches need not be chunks
        writer.append({block: rows[start : start + 3] for block, rows in blocks.items()})
    writer.close()
    write_manifest(Draft(directory), kind="shards", identity={})
    return GradientReader(directory)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_int8_is_within_half_a_step_of_each_row(scale):
    rows = random_rows(scale=scale)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(decoded(CODES["int8"], rows) - rows) <= 0.5001 * step).all()  # 0.0001: division in float32


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_signs_keep_the_sign_of_each_coordinate_and_the_mean_magnitude_of_each_row(scale):
    rows = random_rows(scale=scale)
    expected = np.where(rows > 0, 1, -1) * np.abs(rows.astype(np.float64)).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(decoded(CODES["sign"], rows), expected, rtol=1e-6)


@pytest.mark.parametrize("name", CODES)
def test_a_row_of_zeros_stays_one(name):
    rows = random_rows()
    rows[2] = 0
    assert not decoded(CODES[name], rows)[2].any()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("num_dims", [8, 13, 1])
def test_a_row_takes_the_bytes_that_are_said(name, num_dims):
    stored, scales = CODES[name].encode(random_rows(num_dims=num_dims))
    taken = stored.nbytes + (0 if scales is None else scales.nbytes)
    assert taken == len(stored) * CODES[name].row_bytes(num_dims)


@pytest.mark.parametrize("name", CODES)
def test_a_store_gives_back_what_its_code_makes_of_the_rows_however_they_came(name, tmp_path):
    blocks = {"attention.00": random_rows(11, 13), "mlp.00": random_rows(11, 5)}
    reader = write(UPath(tmp_path), blocks, max_rows=12, store_as=name, chunk_rows=4)
    assert reader.num_rows == 11
    for block, rows in blocks.items():
        expected = decoded(CODES[name], rows)[1:]
        np.testing.assert_array_equal(reader.rows(block, 1, 11), expected)
        parts = [part.copy() for _, part in reader.row_parts(block, 1, 11)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_a_window_is_made_of_whole_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("trackstar.storage.gradients.ROWS_AT_ONCE", 6)
    reader = write(UPath(tmp_path), {"mlp.00": random_rows(11, 5)}, max_rows=11, chunk_rows=2)
    assert list(reader.windows()) == [(0, 6), (6, 11)]
