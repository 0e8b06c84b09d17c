import pytest
from upath import UPath

from trackstar.storage.index_file import index_bytes
from trackstar.storage.locks import held
from trackstar.storage.manifest import new_artifact, require_manifest
from trackstar.storage.results import write_sealed
from trackstar.storage.verification import findings, remove_damaged


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
    with held(draft):
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
