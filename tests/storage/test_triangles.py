import numpy as np
import pytest
import zarr
from upath import UPath

from trackstar.storage import triangles
from trackstar.storage.errors import CorruptionError
from trackstar.storage.manifest import Draft, write_manifest
from trackstar.storage.triangles import create_triangles, read_lower, symmetric, write_lower

NAME = "matrices.zarr"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Matrices of 11 in tiles of 4: whole ones, part ones, and some above the diagonal."""
    monkeypatch.setattr(triangles, "TILE", 4)
    create_triangles(UPath(tmp_path) / NAME)
    return UPath(tmp_path)


def written(directory, num_dims=11):
    matrix = np.random.default_rng(0).normal(size=(num_dims, num_dims))
    matrix = matrix + matrix.T
    write_lower(directory / NAME, "mlp.00", matrix)
    write_manifest(Draft(directory), kind="autocorrelation", identity={})
    return matrix


def test_a_symmetric_matrix_comes_back_bit_for_bit_from_its_lower_triangle(directory):
    matrix = written(directory)
    lower = read_lower(directory, NAME, "mlp.00")
    np.testing.assert_array_equal(lower, np.tril(matrix))
    np.testing.assert_array_equal(symmetric(lower), matrix)
    total = np.asfortranarray(np.tril(np.ones((11, 11))))
    np.testing.assert_array_equal(read_lower(directory, NAME, "mlp.00", out=total), np.tril(matrix + 1))
    assert len([path for path in (directory / NAME / "mlp.00" / "c").rglob("*") if path.is_file()]) == 6  # of 9 tiles


def test_zarr_alone_reads_it_as_documented(directory):
    matrix = written(directory)
    lower = np.tril(zarr.open_group(str(directory / NAME), mode="r")["mlp.00"][:])
    np.testing.assert_array_equal(lower + np.tril(lower, -1).T, matrix)


def test_a_lost_tile_and_a_flipped_bit_are_errors_that_name_the_cure(directory):
    written(directory)
    tile = directory / NAME / "mlp.00" / "c" / "2" / "1"
    content = bytearray(tile.read_bytes())
    content[9] ^= 4
    tile.write_bytes(bytes(content))
    with pytest.raises(CorruptionError, match=r"mlp.00/c/2/1 differs from what was written.*--repair"):
        read_lower(directory, NAME, "mlp.00")
    (directory / NAME / "mlp.00" / "c" / "1" / "0").unlink()
    with pytest.raises(CorruptionError, match=r"mlp.00/c/1/0 is missing"):
        read_lower(directory, NAME, "mlp.00")


def test_writing_again_what_a_lost_worker_began_is_no_error(directory):
    written(directory)
    np.testing.assert_array_equal(np.tril(written(directory)), read_lower(directory, NAME, "mlp.00"))


def test_a_tile_that_a_worker_never_wrote_is_an_error(directory):
    written(directory)
    (directory / NAME / "mlp.00" / "c" / "1" / "0").unlink()
    write_manifest(Draft(directory), kind="autocorrelation", identity={})
    with pytest.raises(CorruptionError, match=r"mlp.00 lacks a part"):
        read_lower(directory, NAME, "mlp.00")
