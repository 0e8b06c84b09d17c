import pytest
from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import InputError
from trackstar.storage.index_file import index_bytes
from trackstar.storage.locks import claimed
from trackstar.storage.manifest import new_artifact, require_manifest
from trackstar.storage.results import write_sealed
from trackstar.storage.verification import findings, remove_damaged, require_index, require_no_indexes


@pytest.fixture
def index(tmp_path):
    root = UPath(tmp_path) / "index"
    named = []
    for digit in "ab":
        directory = root / "shards" / (digit * 16)
        with new_artifact(directory, kind="shards", identity={"digit": digit}) as draft:
            (draft.path / "file").write_bytes(digit.encode())
        named.append({"name": f"shards/{digit * 16}", "digest": require_manifest(directory).digest, "facts": {}})
    (root / "index.json").write_bytes(index_bytes({"shards": named}))
    return root


def _problems(index):
    return [finding.problem for finding in findings(index) if finding is not None]


def test_a_sound_index_has_no_findings(index):
    assert _problems(index) == []


def test_every_kind_of_damage_is_found(index):
    (index / "shards" / ("a" * 16) / "file").write_bytes(b"x")
    (index / "shards" / (".cccccccccccccccc.partial-00000000")).mkdir()
    (index / "shards" / ("d" * 16)).mkdir()
    problems = sorted(_problems(index))
    assert problems == [
        "has damaged files: file",
        "is what an interrupted run left behind",
        "is what an interrupted run left behind: it has no manifest.json",
    ]
    assert [finding.is_damage for finding in findings(index) if finding is not None] == [False, True, False]


def test_a_draft_that_a_living_process_writes_is_no_finding(index):
    draft = index / "shards" / ".cccccccccccccccc.partial-00000000"
    draft.mkdir()
    with claimed(draft):
        assert _problems(index) == []


def test_seconds_that_were_damaged_are_found(index):
    path = index / "shards" / ("a" * 16) / "cost.json"
    write_sealed(path, {"seconds": 1.5})
    assert _problems(index) == []
    path.write_bytes(path.read_bytes().replace(b"1.5", b"9.5"))
    assert "delete this file" in _problems(index)[0]


def test_an_artifact_that_index_json_names_and_that_is_gone_is_found(index):
    (index / "shards" / ("a" * 16)).rename(index / "elsewhere")
    assert _problems(index) == ["is named in index.json and is not there"]


def test_an_unreadable_index_json_is_found(index):
    (index / "index.json").write_text("{")
    assert _problems(index) == ["holds no digest of its own"]


def test_an_artifact_of_another_index_under_the_same_name_is_found(index):
    directory = index / "shards" / ("a" * 16)
    directory.rename(index / "elsewhere")
    with new_artifact(directory, kind="shards", identity={"digit": "a"}) as draft:
        (draft.path / "file").write_bytes(b"sound, and another's")
    assert _problems(index) == ["holds other files than those that index.json names"]


def test_repair_removes_what_is_damaged_and_nothing_else(index):
    (index / "shards" / ("a" * 16) / "file").write_bytes(b"x")
    (index / "notes" / "mine").mkdir(parents=True)
    (index / "notes" / "mine" / "thoughts.txt").write_text("not an artifact")
    remove_damaged([finding for finding in findings(index) if finding is not None])
    assert [path.name for path in (index / "shards").iterdir()] == ["b" * 16]
    assert (index / "notes" / "mine" / "thoughts.txt").exists()


def test_an_index_of_another_format_is_refused_and_not_called_damaged(index):
    (index / "index.json").write_text('{"engine": {}, "shards": []}')
    with pytest.raises(InputError, match="format 1"):
        list(findings(index))


def test_what_a_stage_wrote_is_found_where_its_identity_does_not_belong(index):
    identity = {"stage": "factors", "version": 1}
    for name in (digest_of(identity)[:16], "e" * 16):
        with new_artifact(index / "factors" / name, kind="factors", identity=identity) as draft:
            (draft.path / "file").write_bytes(b"C")
    assert [(f.path.name, f.problem) for f in findings(index) if f] == [
        ("e" * 16, "holds another artifact than its name says")
    ]


def test_another_indexs_index_json_is_what_is_wrong_and_not_the_shards_that_lie_here(index):
    other = [{"name": f"shards/{'c' * 16}", "digest": "0", "facts": {}}]
    (index / "index.json").write_bytes(index_bytes({"shards": other}))
    (found,) = [finding for finding in findings(index) if finding is not None]
    assert (found.path.name, found.problem[:40]) == ("index.json", "names none of the shards that lie here: ")


def repair(index):
    return remove_damaged([finding for finding in findings(index) if finding is not None])


def everything(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    "name", ["../outside", "shards/../../outside", "/etc", "s3://bucket/x", "shards/my-notes", "", None, 7]
)
def test_a_name_in_index_json_never_leads_out_of_the_index(index, name):
    outside = index.parent / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    value = {"shards": [{"name": name, "digest": "0" * 64, "facts": {}}]}
    (index / "index.json").write_bytes(index_bytes(value))
    (finding,) = [finding for finding in findings(index) if finding is not None]
    assert finding.path == index / "index.json"
    assert "names no artifact" in finding.problem
    repair(index)
    assert (outside / "manifest.json").exists()
    assert not (index / "index.json").exists()
    assert len(list((index / "shards").iterdir())) == 2


def test_an_artifact_behind_a_link_is_neither_verified_nor_deleted(index):
    shard = index / "shards" / ("a" * 16)
    shard.rename(index.parent / "elsewhere")
    (index.parent / "elsewhere" / "file").write_bytes(b"x")
    shard.symlink_to(index.parent / "elsewhere", target_is_directory=True)
    assert _problems(index) == ["is reached by a symbolic link, which is not followed; put the directory there"]
    assert [finding.path for finding in repair(index)] == [shard]
    assert shard.is_symlink()
    assert (index.parent / "elsewhere" / "file").exists()


def test_a_file_that_became_a_link_is_damaged_whatever_it_leads_to(index):
    file = index / "shards" / ("a" * 16) / "file"
    file.rename(index.parent / "elsewhere")
    file.symlink_to(index.parent / "elsewhere")
    assert _problems(index) == ["has damaged files: file"]
    assert repair(index) == []
    assert (index.parent / "elsewhere").read_bytes() == b"a"


def test_what_is_not_ours_among_the_artifacts_is_no_finding_and_stays(index):
    (index / "shards" / ".DS_Store").write_bytes(b"")
    (index / "shards" / "my-notes").mkdir()
    (index / "shards" / "my-notes" / "thoughts.txt").write_text("kept")
    (index / "shards" / ("e" * 16)).mkdir()
    (index / "shards" / ("e" * 16) / "thoughts.txt").write_text("kept")
    (index / "shards" / ("f" * 16)).write_text("a file")
    (index / "shards" / "link").symlink_to(index / "shards" / "my-notes", target_is_directory=True)
    (index / "notes" / ("c" * 16)).mkdir(parents=True)
    before = everything(index)
    assert _problems(index) == []
    assert repair(index) == []
    assert everything(index) == before


def test_a_damaged_artifact_that_somebody_put_something_in_is_left_and_the_finding_says_so(index):
    (index / "shards" / ("a" * 16) / "file").write_bytes(b"x")
    (index / "shards" / ("a" * 16) / "thoughts.txt").write_text("kept")
    (problem,) = _problems(index)
    assert problem == ("has damaged files: file; thoughts.txt in it is not ours, move it elsewhere to have it repaired")
    assert [finding.path.name for finding in repair(index)] == ["a" * 16]
    assert (index / "shards" / ("a" * 16) / "thoughts.txt").exists()


def test_a_draft_that_a_living_process_writes_is_no_finding_and_stays(index):
    draft = index / "shards" / f".{'c' * 16}.partial-00000000"
    draft.mkdir()
    with claimed(draft):
        assert _problems(index) == []
    found = [finding for finding in findings(index) if finding is not None]
    with claimed(draft):  # taken up between the two
        assert remove_damaged(found) == found
    assert draft.is_dir()
    assert remove_damaged(found) == []


def empty(directory):
    directory.mkdir()


def of_somebody_else(directory):
    """What looks like an index and is none: digests as names, an index.json, a manifest.json."""
    for name in ("shards", "objects"):
        (directory / name / ("a" * 16)).mkdir(parents=True)
        (directory / name / ("a" * 16) / "manifest.json").write_text('{"name": "a web application"}')
    (directory / "shards" / ("b" * 16)).mkdir()
    (directory / "shards" / ("c" * 16)).mkdir()
    (directory / "shards" / ("c" * 16) / "thesis.docx").write_text("kept")
    (directory / "index.json").write_text('{"pages": []}')


@pytest.mark.parametrize("make", [empty, of_somebody_else])
def test_what_is_no_index_is_refused(tmp_path, make):
    make(UPath(tmp_path) / "it")
    with pytest.raises(InputError, match=r"is no index: .*; give a directory that `trackstar index` wrote"):
        require_index(UPath(tmp_path) / "it")


def test_a_file_and_nothing_at_all_are_no_index(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "absent"):
        with pytest.raises(InputError, match="is no directory"):
            require_index(UPath(tmp_path) / name)


def test_a_directory_of_indexes_is_none(index):
    (index / "index.json").write_text('{"engine": {}, "shards": []}')
    for check in (require_index, require_no_indexes):
        with pytest.raises(InputError, match=r"holds indexes and is none; name one of them, such as .*/index"):
            check(index.parent)


def test_an_index_is_one_while_it_is_built_and_when_its_index_json_is_damaged(index):
    require_no_indexes(index)
    for content in (b"{", b""):
        (index / "index.json").write_bytes(content)
        require_index(index)
    (index / "index.json").unlink()
    require_index(index)
    for shard in (index / "shards").iterdir():
        shard.rename(index / "shards" / f".{shard.name}.partial-01234567")
    require_index(index)
