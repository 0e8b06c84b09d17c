"""Who was withdrawn is kept twice, restored from either copy, and never deleted where both are damaged."""

import shutil

import pytest
from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import CorruptionError
from trackstar.storage.layout import TOMBSTONES
from trackstar.storage.manifest import new_artifact
from trackstar.storage.tombstone_copies import keep_both, require_sound, restore
from trackstar.storage.verification import findings, remove_damaged

IDENTITY = {"stage": "tombstones", "ids": ["d1"]}
DIGEST = digest_of(IDENTITY)[:16]
NAME = f"tombstones/{DIGEST}"


@pytest.fixture
def index(tmp_path):
    root = UPath(tmp_path) / "index"
    with new_artifact(root / NAME, kind="tombstones", identity=IDENTITY) as draft:
        (draft.path / TOMBSTONES).write_bytes(b"d1 was withdrawn")
        draft.facts["num_ids"] = 1
    keep_both(root, NAME)
    return root


def contents(index):
    return {str(path.relative_to(index)): path.read_bytes() for path in index.rglob("*") if path.is_file()}


def flip(directory):
    (directory / TOMBSTONES).write_bytes(b"D1 was withdrawn")


def without_manifest(directory):
    (directory / "manifest.json").unlink()


def damaged_manifest(directory):
    (directory / "manifest.json").write_bytes(b"{")


def of_another_index(directory):
    shutil.rmtree(directory)
    with new_artifact(directory, kind="tombstones", identity={"another": "index"}) as draft:
        (draft.path / TOMBSTONES).write_bytes(b"nobody was withdrawn")


DAMAGES = [flip, without_manifest, damaged_manifest, of_another_index, shutil.rmtree]


def test_both_copies_are_the_same_bytes(index):
    table, copy = contents(index / "tombstones"), contents(index / "tombstone_copies")
    assert table == copy
    assert len(table) == 2


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["tombstones", "tombstone_copies"])
def test_either_copy_is_restored_from_the_other(index, kind, damage):
    before = contents(index)
    damage(index / kind / DIGEST)
    if kind == "tombstones":
        with pytest.raises(
            CorruptionError, match=r"which documents were withdrawn; run `trackstar verify .* --repair`"
        ):
            require_sound(index, NAME)
    assert restore(index) == ([NAME], [])
    assert contents(index) == before
    assert [finding for finding in findings(index) if finding] == []
    require_sound(index, NAME)


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_where_both_are_damaged_nothing_is_deleted_and_the_sentence_says_what_a_person_may_do(index, damage):
    for kind in ("tombstones", "tombstone_copies"):
        damage(index / kind / DIGEST)
    before = contents(index)
    restored, (lost,) = restore(index)
    assert restored == []
    assert "put one of the two back from a backup" in str(lost)
    left = remove_damaged([finding for finding in findings(index) if finding is not None])
    assert {finding.path.parent.name for finding in left} <= {"tombstones", "tombstone_copies"}
    assert contents(index) == before
    with pytest.raises(CorruptionError, match="nobody knows which documents were withdrawn"):
        require_sound(index, NAME)


def test_sound_copies_are_not_written_again(index):
    times = [path.stat().st_mtime_ns for path in sorted(index.rglob("*"))]
    keep_both(index, NAME)
    assert restore(index) == ([], [])
    assert [path.stat().st_mtime_ns for path in sorted(index.rglob("*"))] == times


def test_a_missing_copy_is_found(index):
    shutil.rmtree(index / "tombstone_copies")
    assert [finding.problem for finding in findings(index) if finding] == ["has no second copy"]
