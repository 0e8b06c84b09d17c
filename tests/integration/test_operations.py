"""Operations proved with a real server and real workers: ``make test-integration``."""

import json
import re
from pathlib import Path

import pytest

from tests.flows.runs import files, modification_times
from tests.integration.services import (
    flow_run,
    flow_runs,
    kill_with_children,
    start_worker,
    task_states,
    wait_for_end,
    wait_until,
)
from tests.trainer import train

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SHARD_SIZE = 100
PROJECTION_DIM = 8
TOKEN_BUDGET = 256  # small batches: a shard takes long enough to be killed in its middle


def index_parameters(checkpoint, training, directory) -> str:
    return json.dumps(
        {
            "config": {
                "checkpoint": str(checkpoint),
                "index": str(directory),
                "corpus": {"paths": [str(training / "corpus")], "shard_size": SHARD_SIZE},
                "model": {"token_budget": TOKEN_BUDGET},
                "gradient": {"projection_dim": PROJECTION_DIM},
            }
        }
    )


def run_deployment(machine, deployment, parameters) -> str:
    """Order a run; return its id."""
    printed = machine.prefect("deployment", "run", deployment, "--params", parameters)
    return re.search(r"UUID: (\S+)", printed)[1]


def shards(directory: Path, *, partial: bool) -> list[Path]:
    return [path for path in directory.glob("shards/*") if path.name.startswith(".") == partial]


@pytest.fixture(scope="module")
def killed(machine, llama, training, request):
    """A run of ``index`` whose worker and process were killed while they wrote a shard; no hand is laid on it after."""
    directory = machine.directory / "index"
    worker = start_worker(machine, "first")
    run_id = run_deployment(machine, "index/default", index_parameters(llama, training, directory))
    wait_until(lambda: len(shards(directory, partial=False)) >= 3, 180, "three shards are there")
    wait_until_mid_shard(directory)
    kill_with_children(worker)
    assert not (directory / "index.json").exists()
    survivors = {path.name: modification_times(path) for path in shards(directory, partial=False)}
    request.getfixturevalue("other_worker")
    return run_id, directory, survivors


def wait_until_mid_shard(directory):
    while not shards(directory, partial=True):
        pass


@pytest.mark.filterwarnings("default")  # torch and accelerate warn about themselves
def test_each_save_of_a_trainer_starts_a_reindex_and_the_second_one_reports_drift(killed, training, llama):
    train(llama, training / "checkpoints", max_steps=2)
    first = wait_for_reindex(1)
    assert first.created_by.type == "AUTOMATION"
    train(llama, training / "checkpoints", max_steps=4, resume=True)
    wait_for_reindex(2)
    results = sorted((training / "indexes" / "results").iterdir())
    assert [path.name.rpartition("-")[0] for path in results] == ["checkpoint-2", "checkpoint-4"]
    assert not (results[0] / "drift.json").exists()
    drift = json.loads((results[1] / "drift.json").read_bytes())
    assert (drift["previous"], drift["checkpoint"]) == ("checkpoint-2", "checkpoint-4")
    assert (results[1] / "drift.html").exists()


def wait_for_reindex(count):
    """The latest of ``count`` runs of reindex, all of them completed."""

    def ended():
        runs = [run for run in flow_runs("reindex") if run.state.is_final()]
        return runs if len(runs) == count else None

    runs = wait_until(ended, 240, f"{count} runs of reindex have ended")
    assert {run.state_name for run in runs} == {"Completed"}
    return max(runs, key=lambda run: run.expected_start_time)


def test_a_run_killed_mid_shard_with_its_worker_is_finished_by_another_machine_with_the_same_bytes(
    killed, machine, llama, training
):
    run_id, directory, survivors = killed
    run = wait_for_end(run_id, run_count=2)
    assert (run.state_name, run.run_count) == ("Completed", 2)

    undisturbed = machine.directory / "undisturbed"
    machine.trackstar(
        "index", "--checkpoint", str(llama), "--corpus", str(training / "corpus"), "--index", str(undisturbed),
        "--shard-size", str(SHARD_SIZE), "--projection-dim", str(PROJECTION_DIM), "--token-budget", str(TOKEN_BUDGET),
    )  # fmt: skip
    assert without_address(files(directory), directory) == without_address(files(undisturbed), undisturbed)
    for name, times in survivors.items():
        assert modification_times(directory / "shards" / name) == times
    assert task_states(run_id)["Cached"] >= len(survivors)


def without_address(content: dict[str, bytes], directory: Path) -> dict[str, bytes]:
    """An index is named in its own index.json, and nowhere else."""
    return {**content, "index.json": content["index.json"].replace(str(directory).encode(), b"INDEX")}


def test_the_same_run_again_computes_nothing(killed, machine, llama, training):
    run_id, directory, _ = killed
    wait_for_end(run_id, run_count=2)
    again = run_deployment(machine, "index/default", index_parameters(llama, training, directory))
    assert wait_for_end(again).state_name == "Completed"
    assert set(task_states(again)) == {"Cached"}
    assert flow_run(again).run_count == 1
