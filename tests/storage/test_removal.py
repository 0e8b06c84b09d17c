"""What may be deleted: artifacts and drafts of ours; not what is called like one, or lies behind a link."""

import pytest
from upath import UPath

from trackstar.storage.errors import StorageError
from trackstar.storage.locks import claimed
from trackstar.storage.manifest import is_complete, new_artifact
from trackstar.storage.removal import artifacts, foreign_names, is_ours, remove_artifact, remove_index

DIGEST = "0123456789abcdef"


@pytest.fixture
def index(tmp_path):
    return UPath(tmp_path) / "index"


def write(directory, name="documents.parquet"):
    with new_artifact(directory, kind=directory.parent.name, identity={"name": name}) as draft:
        (draft.path / name).write_bytes(b"bytes")
    return directory


def names(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_an_artifact_is_removed_whole_and_leaves_no_draft_behind(index):
    directory = write(index / "shards" / DIGEST)
    assert is_ours(directory)
    assert remove_artifact(directory)
    assert list(directory.parent.iterdir()) == []
    assert remove_artifact(directory)  # of what is gone there is nothing to do


@pytest.mark.parametrize("name", ["manifest.json", "documents.parquet"])
def test_an_artifact_is_ours_without_its_manifest_or_a_file_of_it(index, name):
    directory = write(index / "shards" / DIGEST)
    (directory / name).unlink()
    assert is_ours(directory)


def test_a_damaged_manifest_makes_an_artifact_nobody_elses(index):
    directory = write(index / "shards" / DIGEST)
    (directory / "manifest.json").write_bytes(b"{")
    assert is_ours(directory)


def test_a_file_of_any_name_is_ours_where_the_manifest_names_it(index):
    assert is_ours(write(index / "checkpoints" / DIGEST, "tokenizer.json"))


@pytest.mark.parametrize("name", ["notes.txt", "mine/notes.txt"])
@pytest.mark.parametrize("is_complete", [True, False])
def test_an_artifact_that_somebody_put_something_in_is_left_alone(index, name, is_complete):
    directory = write(index / "shards" / DIGEST)
    if not is_complete:
        (directory / "manifest.json").unlink()
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("not ours")
    assert foreign_names(directory) == [name.partition("/")[0]]
    with pytest.raises(StorageError, match="is none of ours; move it elsewhere"):
        remove_artifact(directory)
    assert (directory / name).read_text() == "not ours"


@pytest.mark.parametrize("name", ["my-notes", "0123", f"{DIGEST}.old", DIGEST.upper(), f".{DIGEST}.partial-x"])
def test_a_directory_of_another_name_is_not_ours_whatever_it_holds(index, name):
    directory = write(index / "shards" / DIGEST)
    other = directory.rename(directory.parent / name)
    assert not is_ours(other)
    assert list(artifacts(index)) == []


def test_a_directory_of_another_kind_is_not_an_artifact_of_an_index(index):
    write(index / "my_notes" / DIGEST)
    assert list(artifacts(index)) == []


@pytest.mark.parametrize("place", [f"shards/{DIGEST}", f"shards/.{DIGEST}.partial-01234567", "shards"])
def test_a_link_is_never_followed_and_never_removed(index, tmp_path, place):
    elsewhere = write(UPath(tmp_path) / "elsewhere" / DIGEST)
    before = names(elsewhere.parent)
    link = index / place
    link.parent.mkdir(parents=True, exist_ok=True)
    target = elsewhere.parent if place == "shards" else elsewhere
    link.symlink_to(target, target_is_directory=True)
    assert list(artifacts(index)) == []
    if place != "shards":
        assert not is_ours(link)
        with pytest.raises(StorageError, match="none of ours"):
            remove_artifact(link)
    assert link.is_symlink()
    assert names(elsewhere.parent) == before


def test_of_a_link_within_an_artifact_only_the_link_goes(index, tmp_path):
    directory = write(index / "shards" / DIGEST)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    (directory / "documents.parquet").unlink()
    (directory / "documents.parquet").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert remove_artifact(directory)
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"


def test_a_writer_refuses_a_place_that_something_foreign_is_in(index):
    directory = index / "shards" / DIGEST
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("not ours")
    with pytest.raises(StorageError, match="is in an artifact's place and is none of ours"):
        write(directory)
    assert names(directory) == ["notes.txt"]


def test_a_writer_leaves_a_foreign_file_that_is_called_as_a_leftover(index):
    (index / "shards").mkdir(parents=True)
    for suffix in ("partial-mine", "partial-01234567"):
        (index / "shards" / f".{DIGEST}.{suffix}").write_text("a file")
    write(index / "shards" / DIGEST)
    assert len([path for path in (index / "shards").iterdir() if path.is_file()]) == 2


def test_a_draft_is_removed_when_its_writer_is_gone_and_not_before(index):
    draft = index / "shards" / f".{DIGEST}.partial-01234567"
    draft.mkdir(parents=True)
    with claimed(draft) as is_held:
        assert is_held
        assert not remove_artifact(draft)
        assert draft.is_dir()
    assert remove_artifact(draft)
    assert not draft.exists()


def test_a_draft_that_was_taken_away_before_it_was_held_is_begun_again(index, monkeypatch):
    taken = []

    def first_is_gone(directory):
        if not taken:
            taken.append(directory)
            directory.rmdir()
        return claimed(directory)

    monkeypatch.setattr("trackstar.storage.manifest.claimed", first_is_gone)
    directory = write(index / "shards" / DIGEST)
    assert taken
    assert is_complete(directory, {"name": "documents.parquet"})
    assert [path.name for path in directory.parent.iterdir()] == [DIGEST]


def test_removing_an_index_leaves_what_is_not_ours(index):
    (index / "notes").mkdir(parents=True)
    (index / "notes" / "mine.txt").write_text("kept")
    write(index / "shards" / DIGEST)
    (index / "grams").mkdir()
    (index / "shards" / "my-notes").mkdir()
    (index / "index.json").write_text("{}")
    remove_index(index)
    assert names(index) == ["notes", "notes/mine.txt", "shards", "shards/my-notes"]


def test_an_index_of_ours_alone_is_removed_with_its_directory(index):
    write(index / "shards" / DIGEST)
    (index / "index.json").write_text("{}")
    (index / "index.lock").touch()
    remove_index(index)
    assert not index.exists()
