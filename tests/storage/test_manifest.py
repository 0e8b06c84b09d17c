import pickle

import pytest
from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import CorruptionError, FullError, MissingError
from trackstar.storage.locks import claimed
from trackstar.storage.manifest import (
    Artifact,
    damaged_files,
    is_complete,
    new_artifact,
    read_checked,
    read_manifest,
    require_manifest,
)
from trackstar.storage.removal import remove_artifact

IDENTITY = {"of": "things", "seed": 3}


@pytest.fixture
def directory(tmp_path):
    return UPath(tmp_path) / "index" / "things" / "0123456789abcdef"


def _write(directory, *, interrupted=False):
    with new_artifact(directory, kind="things", identity=IDENTITY) as draft:
        (draft.path / "below").mkdir()
        (draft.path / "below" / "file").write_bytes(b"bytes")
        if interrupted:
            raise KeyboardInterrupt
        draft.facts["num_rows"] = 7
    return directory


def test_a_finished_artifact_is_complete_for_its_own_identity_alone(directory):
    _write(directory)
    assert is_complete(directory, {"seed": 3, "of": "things"})  # the order of keys says nothing
    assert not is_complete(directory, {"of": "things", "seed": 4})
    manifest = require_manifest(directory)
    assert manifest.facts == {"num_rows": 7}
    assert read_checked(directory, "below/file") == b"bytes"


def test_a_failed_or_interrupted_writer_leaves_nothing(directory):
    with pytest.raises(KeyboardInterrupt):
        _write(directory, interrupted=True)
    assert list(directory.parent.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_by_the_next_one(directory):
    leftover = directory.parent / ".0123456789abcdef.partial-00000000"
    leftover.mkdir(parents=True)
    _write(directory)
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_leftover_of_another_artifact_is_cleared_too_unless_somebody_writes_it_or_it_is_not_ours(directory):
    names = [".fedcba9876543210.partial-00000000", ".fedcba9876543210.partial-11111111", "..partial-notours"]
    living, left, foreign = (directory.parent / name for name in names)
    for path in (living, left, foreign):
        path.mkdir(parents=True)
    with claimed(living):
        _write(directory)
    assert (living.is_dir(), left.is_dir(), foreign.is_dir()) == (True, False, True)


def test_of_two_writers_at_once_neither_disturbs_the_other_and_the_second_to_finish_gives_way(directory):
    with new_artifact(directory, kind="things", identity=IDENTITY) as slow:
        (slow.path / "file").write_bytes(b"slow")
        with new_artifact(directory, kind="things", identity=IDENTITY) as fast:
            (fast.path / "file").write_bytes(b"fast")
        assert read_checked(directory, "file") == b"fast"
        assert (slow.path / "file").read_bytes() == b"slow"
    assert read_checked(directory, "file") == b"fast"
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_the_same_content_written_twice_has_the_same_manifest(directory):
    first = (_write(directory) / "manifest.json").read_bytes()
    assert (_write(directory) / "manifest.json").read_bytes() == first


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"bytez"), lambda f: f.unlink()])
def test_damage_is_found_and_read_as_an_error_that_names_file_and_cure(directory, damage):
    _write(directory)
    assert damaged_files(directory) == []
    damage(directory / "below" / "file")
    assert damaged_files(directory) == ["below/file"]
    with pytest.raises(CorruptionError, match=r"below/file .*; run `trackstar verify .* --repair`"):
        read_checked(directory, "below/file")


def test_an_unreadable_manifest_is_an_error_and_an_absent_one_is_not(directory):
    assert read_manifest(directory) is None
    with pytest.raises(MissingError):
        require_manifest(directory)
    _write(directory)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(CorruptionError, match="manifest"):
        read_manifest(directory)


def test_every_flipped_bit_of_a_manifest_is_found(directory):
    path = _write(directory) / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            with pytest.raises(CorruptionError, match="manifest"):
                read_manifest(directory)


def test_a_reference_leads_only_to_the_files_it_was_made_of(directory, tmp_path):
    reference = Artifact(name="things/0123456789abcdef", digest=require_manifest(_write(directory)).digest, facts={})
    index = str(tmp_path / "index")
    assert reference.path(index) == directory
    remove_artifact(directory)
    with pytest.raises(MissingError):
        reference.path(index)
    with new_artifact(directory, kind="things", identity=IDENTITY) as draft:
        (draft.path / "file").write_bytes(b"another index's")
    with pytest.raises(CorruptionError, match=r"0123456789abcdef holds other files .* --repair"):
        reference.path(index)


def test_a_removed_artifact_is_gone(directory):
    assert remove_artifact(_write(directory))
    assert not directory.exists()


def test_a_relative_directory_has_the_same_files_as_an_absolute_one(directory, monkeypatch, tmp_path):
    from trackstar.storage.layout import location

    monkeypatch.chdir(tmp_path)
    _write(location("here/things/0123456789abcdef"))
    assert list(require_manifest(UPath(tmp_path) / "here/things/0123456789abcdef").files) == ["below/file"]


def test_digests_refuse_what_json_has_no_word_for():
    with pytest.raises(ValueError, match="Out of range float"):
        digest_of({"damping": float("nan")})


def test_storage_errors_cross_process_boundaries():
    error = pickle.loads(pickle.dumps(CorruptionError("/a/b", "is damaged", "write it again")))
    assert (error.path, error.problem, error.cure) == ("/a/b", "is damaged", "write it again")


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError(122, "Disk quota exceeded"), ValueError("failed (os error 28)")],
    ids=["disk", "quota", "in words"],
)
def test_a_full_disk_is_one_sentence_with_the_path_and_leaves_no_draft_and_there_is_room_later(directory, error):
    def write_until_full():
        with new_artifact(directory, kind="things", identity=IDENTITY) as draft:
            (draft.path / "part").write_bytes(b"12345")
            raise error

    words = rf"{directory} does not fit on its disk: 0\.0 MiB of it were written and .* were free; make room .* is kept"
    with pytest.raises(FullError, match=words):
        write_until_full()
    assert list(directory.parent.iterdir()) == []
    assert is_complete(_write(directory), IDENTITY)
