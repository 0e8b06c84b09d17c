import pytest

from trackstar.storage.errors import InputError
from trackstar.storage.layout import artifact_path, is_artifact_name, is_draft_name, location, require_artifact_name
from trackstar.storage.manifest import Artifact

DIGEST = "0123456789abcdef"


@pytest.mark.parametrize("url", ["", " ", "\t\n", "file://", "file:// ", "s3://", "s3:// "])
def test_an_empty_path_is_refused_and_never_the_current_directory(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="names nothing; give a file, a directory or an object store URL"):
        location(url)


@pytest.mark.parametrize("url", ["nosuchscheme://x/y", "a\0b"])
def test_what_nothing_can_open_is_one_sentence(url):
    with pytest.raises(InputError, match="the path is '"):
        location(url)


def test_the_current_directory_is_meant_where_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(location(".")) == str(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../x", "/etc/passwd", "s3://bucket/x", "shards/..", f"../{DIGEST}", f"shards/../{DIGEST}",
        f"shards/{DIGEST}/x", f"shards/{DIGEST}\n", f"shards/.{DIGEST}.partial-01234567", f"shards/{DIGEST.upper()}",
        "shards/my-notes", "",
        f"/{DIGEST}", f"./{DIGEST}", f"shards//{DIGEST}",
    ],
)  # fmt: skip
def test_a_name_that_is_no_kind_and_digest_never_becomes_a_path(name):
    with pytest.raises(ValueError, match="names no artifact"):
        require_artifact_name(name)
    with pytest.raises(ValueError, match="names no artifact"):
        Artifact(name=name, digest="0" * 64, facts={})
    with pytest.raises(ValueError, match="names no artifact"):
        artifact_path("/index", name)


def test_an_artifact_lies_below_its_index(tmp_path):
    assert str(artifact_path(tmp_path, f"shards/{DIGEST}")) == str(tmp_path / "shards" / DIGEST)


def test_a_draft_is_told_from_a_finished_artifact_by_its_name():
    assert is_artifact_name(DIGEST)
    assert not is_draft_name(DIGEST)
    assert is_artifact_name(f".{DIGEST}.partial-01234567")
    assert is_draft_name(f".{DIGEST}.partial-01234567")
    assert not is_artifact_name("my-notes")
