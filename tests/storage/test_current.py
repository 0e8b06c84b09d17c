"""Which index serves: one file says it, whole or not at all, and a name in it is a name."""

import json

import pytest
from upath import UPath

from trackstar.storage import current
from trackstar.storage.current import promote, require_index_name, resolved, roll_back, serving_of, spared
from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.sealed import sealed
from trackstar.storage.verification import require_index, require_no_indexes


@pytest.fixture(params=["disk", "memory"])
def indexes(request, tmp_path):
    root = UPath(tmp_path / "indexes") if request.param == "disk" else UPath(f"memory://{tmp_path.name}/indexes")
    for name in ("a-1", "b-2", "c-3"):
        (root / name).mkdir(parents=True)
        (root / name / "index.json").write_text(json.dumps({"engine": {}, "shards": []}))
    return root


def test_a_directory_means_the_index_that_was_promoted_and_an_index_itself(indexes):
    with pytest.raises(InputError, match="holds indexes and is none"):
        resolved(str(indexes))
    promote(indexes, "a-1", by="reindex", gates=({"name": "lost"},))
    promote(indexes, "b-2", by="promote")
    assert UPath(resolved(str(indexes))).name == "b-2"
    assert UPath(resolved(str(indexes / "a-1"))).name == "a-1"
    found = json.loads((indexes / "current.json").read_bytes())
    assert (found["index"], found["previous"], found["promoted_by"]) == ("b-2", "a-1", "promote")
    assert json.loads((indexes / "previous.json").read_bytes())["gates"] == [{"name": "lost"}]
    assert spared(indexes) == {"a-1", "b-2"}


def test_a_rollback_goes_back_and_holds_what_it_left_until_a_person_promotes_that(indexes):
    with pytest.raises(InputError, match="no index that served before"):
        roll_back(indexes)
    promote(indexes, "a-1", by="reindex")
    promote(indexes, "b-2", by="reindex")
    back = roll_back(indexes)
    assert (back.index, back.previous, back.held) == ("a-1", "b-2", ("b-2",))
    assert roll_back(indexes).held == ("a-1",)
    assert promote(indexes, "a-1", by="promote").held == ()


def test_promoting_what_serves_keeps_what_served_before(indexes):
    promote(indexes, "a-1", by="reindex")
    promote(indexes, "b-2", by="reindex")
    assert promote(indexes, "b-2", by="promote").previous == "a-1"
    assert json.loads((indexes / "previous.json").read_bytes())["index"] == "a-1"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "results", "a\\b", "a\0"])
def test_what_is_no_plain_name_never_becomes_a_path(indexes, name):
    with pytest.raises(InputError, match="names no index"):
        require_index_name(name)
    with pytest.raises(InputError, match="names no index"):
        promote(indexes, name, by="promote")
    said = {"index": name, "promoted_at": "", "promoted_by": "reindex"}
    (indexes / "current.json").write_bytes(sealed(said))
    with pytest.raises(CorruptionError, match=r"current\.json names no index"):
        resolved(str(indexes))


def test_neither_an_absent_index_nor_a_link_is_promoted(tmp_path, indexes):
    with pytest.raises(MissingError, match="no finished index"):
        promote(indexes, "d-4", by="promote")
    if indexes.protocol in ("", "file"):
        (tmp_path / "indexes" / "d-4").symlink_to("a-1")
        with pytest.raises(MissingError, match="no finished index"):
            promote(indexes, "d-4", by="promote")


def test_a_flipped_bit_in_what_serves_is_told_and_promoting_mends_it(indexes):
    promote(indexes, "a-1", by="reindex")
    content = (indexes / "current.json").read_bytes()
    (indexes / "current.json").write_bytes(content.replace(b"a-1", b"b-2"))
    with pytest.raises(CorruptionError, match="trackstar promote"):
        serving_of(indexes)
    promote(indexes, "a-1", by="promote")
    assert serving_of(indexes).index == "a-1"


def test_killed_between_the_two_files_the_old_index_still_serves(indexes, monkeypatch):
    promote(indexes, "a-1", by="reindex")
    promote(indexes, "b-2", by="reindex")

    def write(path, serving, write=current._write):
        if path.name == "current.json":
            raise OSError("killed")
        write(path, serving)

    monkeypatch.setattr(current, "_write", write)
    with pytest.raises(OSError, match="killed"):
        promote(indexes, "c-3", by="reindex")
    monkeypatch.undo()
    assert (serving_of(indexes).index, serving_of(indexes).previous) == ("b-2", "a-1")


def test_index_and_verify_refuse_a_directory_of_indexes(indexes):
    promote(indexes, "a-1", by="reindex")
    for refuse in (require_index, require_no_indexes):
        with pytest.raises(InputError, match="holds indexes"):
            refuse(indexes)
    for name in ("a-1", "b-2", "c-3"):
        (indexes / name / "index.json").unlink()
    for refuse in (require_index, require_no_indexes):
        with pytest.raises(InputError, match="is a directory of indexes"):
            refuse(indexes)
