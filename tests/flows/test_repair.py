"""Flip a bit, repair, index, ask: the answers are those of before, whatever it was that was damaged."""

import re
import shutil

import numpy as np
import pytest
from upath import UPath

from tests.flows.runs import build, files, index_config, score
from tests.flows.test_cli import run as run_command
from tests.tiny import TEXTS
from trackstar.flows.cli.tables import verify_index
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import CorruptionError
from trackstar.storage.layout import is_draft_name
from trackstar.storage.removal import artifacts
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.index.withdrawals import read_tombstones
from trackstar.tasks.models.engine import Engine

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = {"shard_size": 5, "mode": "estimated", "curvature": {"group_shards": 1}}
ASKED = {"mixing_weight": 0.9}
KINDS = (
    "second_moment", "shards", "grams", "autocorrelation", "spectrum", "factors", "train_norms", "queries", "rankings",
)  # fmt: skip


@pytest.fixture
def built(llama, corpus, tmp_path):
    build(tmp_path / "index", llama, corpus, **SETTINGS)
    return tmp_path / "index"


def of_kind(directory, kind):
    return [path for path in artifacts(UPath(directory)) if path.parent.name == kind]


def flip(artifact):
    """Change one byte of the largest file of an artifact."""
    file = max((path for path in artifact.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def is_sound(directory):
    return verify_index(str(directory), repair=False).is_sound


@pytest.mark.parametrize("damage", [flip, shutil.rmtree], ids=["flipped", "deleted"])
def test_whatever_is_damaged_is_rebuilt_after_repair_and_the_answers_are_those_of_before(
    built, llama, corpus, queries, tmp_path, damage
):
    expected, before = score(built, queries, tmp_path / "before", **ASKED), files(built)
    for kind in KINDS:
        damage(of_kind(built, kind)[0])
        verify_index(str(built), repair=True)
        index(index_config(built, llama, corpus, **SETTINGS))
        np.testing.assert_array_equal(score(built, queries, tmp_path / kind, **ASKED), expected, err_msg=kind)
        assert is_sound(built), kind
    after = files(built)
    changed = {name for name in before if after[name] != before[name]}
    # seconds; and facts about a ranking, sums over blocks in the order in which safetensors gives them
    assert [name for name in changed if not re.fullmatch(r".*/cost\.json|rankings/.*/manifest\.json", name)] == []


def test_an_estimate_that_was_lost_is_made_of_its_own_sample_again_when_the_corpus_has_grown(
    built, llama, corpus, tmp_path, monkeypatch
):
    (corpus / "part-2.jsonl").write_text('{"id": "new", "text": "A heron sleeps at noon."}\n')
    grown = index(index_config(built, llama, corpus, **SETTINGS))
    shutil.rmtree(of_kind(built, "second_moment")[0])
    monkeypatch.setattr(Engine, "gradients", None)  # no shard is computed again
    assert index(index_config(built, llama, corpus, **SETTINGS)) == grown
    assert is_sound(built)


def test_an_estimate_whose_sample_is_gone_is_made_anew_and_with_it_every_shard(built, llama, corpus):
    before = read_index(str(built))
    lines = (corpus / "part-0.jsonl").read_text().splitlines()
    (corpus / "part-0.jsonl").write_text("".join(f"{line}\n" for line in lines[1:]))
    shutil.rmtree(of_kind(built, "second_moment")[0])
    after = index(index_config(built, llama, corpus, **SETTINGS))
    assert after.engine.second_moment.name != before.engine.second_moment.name
    assert {shard.name for shard in after.shards}.isdisjoint({shard.name for shard in before.shards})
    assert is_sound(built)


def test_reindexing_rebuilds_what_was_removed_from_an_index_that_looks_finished(llama, corpus, queries, tmp_path):
    from trackstar.flows.config import ReindexConfig
    from trackstar.flows.reindex import reindex

    shutil.copytree(llama, tmp_path / "run" / "step-1")
    config = ReindexConfig.model_validate(
        {
            "checkpoints": str(tmp_path / "run"),
            "indexes": str(tmp_path / "indexes"),
            "corpus": {"paths": [str(corpus)]},
            "gradient": {"projection_dim": 4},
        }
    )
    (name,) = reindex(config).indexed
    shutil.rmtree(of_kind(tmp_path / "indexes" / name, "shards")[0])
    assert reindex(config).indexed == [name]
    assert is_sound(tmp_path / "indexes" / name)


def test_a_damaged_table_of_tombstones_is_restored_and_nobody_returns(built, llama, corpus, queries, tmp_path):
    withdraw(WithdrawConfig(index=str(built), ids=("d3",), reason="consent"))
    before = files(built)
    (table,) = of_kind(built, "tombstones")
    for damage in (flip, shutil.rmtree):
        damage(table)
        with pytest.raises(
            CorruptionError, match=r"run `trackstar verify .* --repair`, which restores it from its copy"
        ):
            index(index_config(built, llama, corpus, **SETTINGS))
        verify_index(str(built), repair=True)
        assert files(built) == before
        assert is_sound(built)
    assert index(index_config(built, llama, corpus, **SETTINGS)).num_withdrawn == 1


def test_where_both_tables_are_damaged_every_command_refuses_and_repair_deletes_neither(
    built, llama, corpus, queries, tmp_path, monkeypatch, capsys
):
    withdraw(WithdrawConfig(index=str(built), ids=("d3",)))
    for kind in ("tombstones", "tombstone_copies"):
        flip(of_kind(built, kind)[0])
    before = files(built)
    out = ("--queries", queries, "--out", tmp_path / "out")
    for arguments in (
        ("index", "--checkpoint", llama, "--corpus", corpus, "--index", built, "--second-moment", "estimated"),
        ("attribute", "--index", built, *out),
        ("compare", "--index", built, *out),
        ("withdraw", "--index", built, "--ids", "d5"),
        ("show", built),
    ):
        code, _, error = run_command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 1, arguments
        assert "nobody knows which documents were withdrawn; put one of the two back" in error, arguments
    code, output, _ = run_command("verify", built, "--repair", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "put one of the two back from a backup" in " ".join(output.split())
    assert files(built) == before
    (built / "index.json").unlink()  # nor does losing this bring anybody back
    with pytest.raises(CorruptionError, match="nobody knows"):
        index(index_config(built, llama, corpus, **SETTINGS))


def test_who_was_withdrawn_outlasts_a_lost_index_json_and_a_lost_table(built, llama, corpus):
    withdraw(WithdrawConfig(index=str(built), ids=("d3",)))
    (built / "index.json").unlink()
    shutil.rmtree(built / "tombstones")
    verify_index(str(built), repair=True)
    found = index(index_config(built, llama, corpus, **SETTINGS))
    assert found.num_withdrawn == 1
    assert read_tombstones(found.tombstones, str(built))["id"].to_list() == ["d3"]


def test_what_is_not_ours_outlasts_growing_withdrawing_and_repairing(built, llama, corpus, queries, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "thesis").mkdir(parents=True)
    (elsewhere / "thesis" / "chapter.txt").write_text("kept")
    foreign = {"shards/.DS_Store": b"", "shards/my-notes/notes.txt": b"kept", "autocorrelation/notes.txt": b"kept",
               "notes/0123456789abcdef/notes.txt": b"kept", "shards/0123456789abcdef/notes.txt": b"kept",
               "my_shards/notes.txt": b"kept", "tombstones/readme": b"kept"}  # fmt: skip
    for name, content in foreign.items():
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).write_bytes(content)
    for name in ("shards/link", "shards/fedcba9876543210", "grams/fedcba9876543210"):
        (built / name).symlink_to(elsewhere / "thesis", target_is_directory=True)
    (corpus / "part-0.jsonl").unlink()
    index(index_config(built, llama, corpus, **SETTINGS))
    withdraw(WithdrawConfig(index=str(built), ids=(f"d{len(TEXTS) - 1}",)))
    assert is_sound(built)
    verify_index(str(built), repair=True)
    left = files(built)
    assert {name: left.get(name) for name in foreign} == foreign
    assert (built / "shards" / "fedcba9876543210").is_symlink()
    assert (elsewhere / "thesis" / "chapter.txt").read_text() == "kept"
    assert not [path for path in artifacts(UPath(built)) if is_draft_name(path.name)]


def test_verify_of_what_is_no_index_is_exit_code_2_and_repair_deletes_nothing_there(
    built, tmp_path, monkeypatch, capsys
):
    (tmp_path / "it" / "shards" / ("a" * 16)).mkdir(parents=True)
    (tmp_path / "it" / "index.json").write_text('{"pages": []}')
    (tmp_path / "it" / "notes.txt").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for directory, sentence in (
        (tmp_path / "it", "is no index"), ("/etc", "is no index"), (tmp_path, "holds indexes and is none"),
        (tmp_path / "absent", "is no directory"), (tmp_path / "it" / "notes.txt", "is no directory"),
    ):  # fmt: skip
        for options in ((), ("--repair",)):
            code, output, error = run_command("verify", directory, *options, monkeypatch=monkeypatch, capsys=capsys)
            assert (code, output) == (2, "")
            assert sentence in error
            assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_leads_out_of_the_index_is_refused_by_every_reader(built, queries, tmp_path, monkeypatch, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("kept")
    name = of_kind(built, "shards")[0]
    content = (built / "index.json").read_text().replace(f"shards/{name.name}", "../outside")
    (built / "index.json").write_text(content)
    attribute = ("attribute", "--index", built, "--queries", queries, "--out", tmp_path / "out")
    assert run_command(*attribute, monkeypatch=monkeypatch, capsys=capsys)[0] == 1
    assert run_command("verify", built, monkeypatch=monkeypatch, capsys=capsys)[0] == 1
    assert run_command("verify", built, "--repair", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert (outside / "thesis.txt").read_text() == "kept"
