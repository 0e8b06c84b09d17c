"""Who was withdrawn from every index of a directory is kept twice, and a damaged file never brings anybody back."""

import pytest
from upath import UPath

from trackstar.storage.errors import CorruptionError
from trackstar.storage.standing import read_standing, write_standing

FIRST = {"ids": ["d1"], "at": "2026-01-01T00:00:00+00:00", "reason": "consent"}
SECOND = {"ids": ["d\ud800", "d2"], "at": "2026-01-02T00:00:00+00:00", "reason": ""}
FILES = ("withdrawn.json", "withdrawn.copy.json")


@pytest.fixture(params=["disk", "memory"])
def indexes(request, tmp_path):
    root = UPath(tmp_path / "indexes") if request.param == "disk" else UPath(f"memory://{tmp_path.name}/indexes")
    root.mkdir(parents=True)
    return root


def test_what_was_written_is_read_and_nothing_is_nobody(indexes):
    assert read_standing(indexes) == []
    write_standing(indexes, [FIRST, SECOND])
    assert read_standing(indexes) == [FIRST, SECOND]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_either_file_alone_says_it(indexes, file, harm):
    write_standing(indexes, [FIRST])
    content = (indexes / file).read_bytes()
    if harm == "delete":
        (indexes / file).unlink()
    else:
        (indexes / file).write_bytes(content.replace(b"d1", b"d2") if harm == "flip" else content[:-9])
    assert read_standing(indexes) == [FIRST]


def test_of_two_that_differ_the_longer_one_counts(indexes):
    write_standing(indexes, [FIRST, SECOND])
    newer = (indexes / FILES[1]).read_bytes()
    write_standing(indexes, [FIRST])
    (indexes / FILES[1]).write_bytes(newer)
    assert read_standing(indexes) == [FIRST, SECOND]


def test_where_none_can_be_read_nothing_goes_on(indexes):
    write_standing(indexes, [FIRST])
    (indexes / FILES[0]).write_bytes(b"{}")
    (indexes / FILES[1]).unlink()
    with pytest.raises(CorruptionError, match="nobody knows who was withdrawn"):
        read_standing(indexes)
