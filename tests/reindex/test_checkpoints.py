import json
import shutil

import pytest
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import model_files, read_checkpoint
from trackstar.tasks.reindex.checkpoints import (
    Asked,
    distinct,
    find_checkpoints,
    index_name,
    previous_results,
    remove_old_indexes,
    write_asked,
)
from trackstar.tasks.scoring.score_pass import ScoreConfig


def copy(checkpoint, directory, **state):
    shutil.copytree(checkpoint, directory)
    if state:
        (directory / "trainer_state.json").write_text(json.dumps(state))
    return directory


def taken(directory, keep_last=None):
    """Names of the checkpoints that would be indexed."""
    read = []

    def identify(found):
        read.append(found.name)
        return read_checkpoint(found.path)

    found = find_checkpoints(str(directory))
    kept = distinct(found, keep_last, identify=identify, indexes=str(directory.parent / "indexes"))
    return [checkpoint.name for checkpoint, _ in kept], read


def changed(checkpoint, directory, **state):
    """A copy with other weights, as far as an identity goes: only one byte of their file's header differs."""
    copy(checkpoint, directory, **state)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "note": directory.name}))
    return directory


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def test_checkpoints_come_in_the_order_of_their_steps_and_then_by_name(llama, tmp_path):
    for name, state in (("step-1000", {}), ("step-200", {}), ("late", {"global_step": 3000}), ("b", {}), ("a", {})):
        copy(llama, tmp_path / name, **state)
    found = find_checkpoints(str(tmp_path))
    assert [checkpoint.name for checkpoint in found] == ["step-200", "step-1000", "late", "a", "b"]
    assert [checkpoint.step for checkpoint in found] == [200, 1000, 3000, None, None]


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "optimizer.pt", "trainer_state.json"]
)
def test_a_checkpoint_whose_last_bytes_are_not_there_is_half_written(llama, tmp_path, file):
    checkpoint = copy(llama, tmp_path / "checkpoint-7", global_step=7)
    (checkpoint / "training_args.bin").write_bytes(b"")
    assert find_checkpoints(str(tmp_path))[0].missing is None
    cut(checkpoint / file)
    (found,) = find_checkpoints(str(tmp_path))
    assert file in found.missing
    assert taken(tmp_path) == ([], [])


def test_a_checkpoint_that_is_still_without_weights_state_or_a_named_shard_is_half_written(llama, tmp_path):
    copy(llama, tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    (copy(llama, tmp_path / "checkpoint-1") / "training_args.bin").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    sharded = copy(llama, tmp_path / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    reasons = {checkpoint.name: checkpoint.missing for checkpoint in find_checkpoints(str(tmp_path))}
    assert "no weights" in reasons["no-weights"]
    assert "trainer_state.json is not there yet" in reasons["checkpoint-1"]
    assert "model-2.safetensors" in reasons["sharded"]


def test_an_adapter_is_not_waited_for(llama, tmp_path):
    directory = copy(llama, tmp_path / "step-1")
    (directory / "config.json").unlink()
    (directory / "adapter_config.json").write_text("{}")
    assert find_checkpoints(str(tmp_path))[0].missing is None
    with pytest.raises(InputError, match=r"holds an adapter \(adapter_config\.json\)"):
        model_files(str(directory))


def test_what_is_no_index_of_these_checkpoints_is_never_removed(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-1-01234567").mkdir()
    assert remove_old_indexes(str(tmp_path), checkpoints=str(tmp_path / "runs"), kept=set()) == []
    assert {entry.name for entry in tmp_path.iterdir()} == {"notes", "step-1-01234567"}


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no directory"):
        find_checkpoints(str(tmp_path / "absent"))


def test_drift_is_measured_against_the_last_earlier_checkpoint_of_the_same_training_run(tmp_path):
    def asked(checkpoints, step):
        name = f"step-{step}"
        return Asked(checkpoints=checkpoints, name=name, step=step, digest="", queries=(), score=ScoreConfig())

    for checkpoints, step in (("a", 1), ("a", 3), ("b", 2)):
        (tmp_path / f"{checkpoints}{step}").mkdir()
        write_asked(UPath(tmp_path) / f"{checkpoints}{step}", asked(checkpoints, step))
    assert previous_results(UPath(tmp_path), asked("a", 3)).name == "a1"
    assert previous_results(UPath(tmp_path), asked("b", 4)).name == "b2"
    assert previous_results(UPath(tmp_path), asked("b", 2)) is None


@pytest.mark.parametrize("name", ["tmp-checkpoint-20", "checkpoint-20.tmp", "step_20.partial", "20.checkpoint-tmp-17"])
def test_a_name_that_says_it_is_being_written_is_waited_for(llama, tmp_path, name):
    copy(llama, tmp_path / name, global_step=20)
    assert "being written" in find_checkpoints(str(tmp_path))[0].missing
    (tmp_path / name).rename(tmp_path / "template-20")
    assert find_checkpoints(str(tmp_path))[0].missing is None


def test_a_link_to_a_checkpoint_is_no_second_one_and_one_to_elsewhere_is_one(llama, tmp_path):
    runs = tmp_path / "runs"
    copy(llama, runs / "checkpoint-20")
    changed(llama, tmp_path / "elsewhere" / "x")
    for name, target in (("best", "checkpoint-20"), ("last", "best"), ("far", "../elsewhere/x"), ("gone", "nothing")):
        (runs / name).symlink_to(target)
    (runs / "farther").symlink_to(runs / "far")
    assert [checkpoint.name for checkpoint in find_checkpoints(str(runs))] == ["checkpoint-20", "far"]


def test_of_copies_the_one_that_is_indexed_counts_else_the_first_and_no_more_is_read_than_is_kept(llama, tmp_path):
    runs = tmp_path / "runs"
    for step in (1, 2):
        changed(llama, runs / f"step-{step}")
    copy(runs / "step-2", runs / "step-3")
    assert taken(runs) == (["step-1", "step-2"], ["step-3", "step-2", "step-1"])
    assert taken(runs, keep_last=1) == (["step-3"], ["step-3"])
    name = index_name(read_checkpoint(str(runs / "step-3")))
    (tmp_path / "indexes" / name).mkdir(parents=True)
    (tmp_path / "indexes" / name / "index.json").write_text("{}")
    assert taken(runs)[0] == ["step-1", "step-3"]


def test_neither_hidden_files_nor_old_weights_beside_newer_ones_are_waited_for(llama, tmp_path):
    checkpoint = copy(llama, tmp_path / "checkpoint-20")
    before = read_checkpoint(str(checkpoint)).digest
    (checkpoint / "._model.safetensors").write_bytes(b"of the Finder")
    assert read_checkpoint(str(checkpoint)).digest == before
    (checkpoint / "pytorch_model.bin").write_bytes(b"PK, the first half")
    assert find_checkpoints(str(tmp_path))[0].missing is None
    (checkpoint / "model.safetensors").unlink()
    assert "pytorch_model.bin is half written" in find_checkpoints(str(tmp_path))[0].missing


def test_pieces_of_several_ranks_are_not_waited_for(llama, tmp_path):
    checkpoint = copy(llama, tmp_path / "checkpoint-20")
    (checkpoint / "model.safetensors").rename(checkpoint / "shard-00000-model-00000-of-00002.safetensors")
    assert find_checkpoints(str(tmp_path))[0].missing is None
