"""What queries leave behind can be removed, and nothing else goes with it."""

import json

import pytest
from upath import UPath

from trackstar.storage.errors import InputError, LockedError
from trackstar.storage.layout import OF_AN_INDEX
from trackstar.storage.manifest import new_artifact
from trackstar.storage.pruning import FOR_QUERIES, OF_QUERIES, prune
from trackstar.storage.writer import reading

DIGEST = "0123456789abcdef"


@pytest.fixture
def index(tmp_path):
    """One artifact of each kind that an index may hold."""
    root = UPath(tmp_path) / "index"
    for kind in OF_AN_INDEX:
        with new_artifact(root / kind / DIGEST, kind=kind, identity={"kind": kind}) as draft:
            (draft.path / f"{kind}.parquet").write_bytes(b"x" * 1000)
    (root / "index.json").write_text(json.dumps({"engine": {}, "shards": []}))
    return root


def kinds_left(index):
    return {kind for kind in OF_AN_INDEX if (index / kind / DIGEST).exists()}


@pytest.mark.parametrize(("shared", "gone"), [(False, OF_QUERIES), (True, OF_QUERIES + FOR_QUERIES)])
def test_what_queries_left_goes_and_the_index_stays(index, shared, gone):
    assert set(prune(index, shared=shared, dry_run=True)) == set(gone)
    assert kinds_left(index) == OF_AN_INDEX
    freed = prune(index, shared=shared)
    assert kinds_left(index) == OF_AN_INDEX - set(gone)
    assert all(count == 1 and 1000 < size < 3000 for count, size in freed.values())
    assert prune(index, shared=shared) == {}


def test_what_is_not_ours_or_being_written_stays(index):
    (index / "rankings" / DIGEST / "notes.txt").write_text("mine")
    (index / "queries" / "my-notes").mkdir()
    draft = index / "queries" / f".{DIGEST}.partial-01234567"
    draft.mkdir()
    assert "rankings" not in prune(index)
    assert (index / "rankings" / DIGEST / "notes.txt").exists()
    assert draft.is_dir()
    assert (index / "queries" / "my-notes").is_dir()


def test_nothing_goes_while_a_query_is_being_asked(index):
    with reading(index), pytest.raises(LockedError, match="is being read"):
        prune(index)
    assert kinds_left(index) == OF_AN_INDEX


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no index"):
        prune(UPath(tmp_path))
