"""What failing costs: wrong input nothing but its own message, a passing fault a retry, a broken shard only itself."""

import pytest
import torch
from distributed import KilledWorker
from distributed.comm import CommClosedError
from prefect.states import Failed

from tests.flows.runs import build, files, index_config, modification_times, task_states
from trackstar.flows.index import index
from trackstar.storage.errors import CorruptionError, FullError, InputError
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.runtime.prefect_tasks import is_transient

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Retries without the waiting."""
    from trackstar.tasks.index.shards import index_shard

    monkeypatch.setattr(index_shard, "task", index_shard.task.with_options(retry_delay_seconds=0))


@pytest.fixture
def faults(monkeypatch):
    """Errors to be raised by the coming batches, None where one goes well; and how many batches were tried."""
    pending, tried, compute = [], [], Engine.gradients

    def failing(self, sequences, **options):
        tried.append(len(sequences))
        error = pending.pop(0) if pending else None
        if error is not None:
            raise error
        return compute(self, sequences, **options)

    monkeypatch.setattr(Engine, "gradients", failing)
    return pending, tried


def finished_shards(directory):
    return {path.parent for path in directory.glob("shards/*/manifest.json")}


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        TimeoutError(),
        ConnectionResetError(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        CommClosedError("a worker went away"),
        KilledWorker("task", None, 3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_input_and_output_memory_and_lost_workers_are_worth_another_try(error):
    assert is_transient(None, None, Failed(data=error))


@pytest.mark.parametrize(
    "error",
    [
        InputError("no"),
        CorruptionError("f", "is damaged", "cure"),
        ValueError(),
        PermissionError(13, "denied"),
        NotImplementedError(),
        RuntimeError("size mismatch for lm_head.weight"),
        IndexError("index out of range in self"),
        OSError(28, "No space left on device"),
        FullError("f", "does not fit", "cure"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_wrong_input_is_not_tried_again(error):
    assert not is_transient(None, None, Failed(data=error))


def test_a_passing_fault_is_retried_and_leaves_the_bytes_of_an_undisturbed_run(llama, corpus, tmp_path, faults):
    directory, undisturbed = tmp_path / "index", tmp_path / "undisturbed"
    build(directory, llama, corpus)
    directory.rename(undisturbed)
    pending, tried = faults
    tried.clear()
    pending += [OSError(5, "Input/output error"), torch.OutOfMemoryError("CUDA out of memory"), None]
    build(directory, llama, corpus)
    assert tried[0] == tried[1] == tried[2]
    assert files(directory) == files(undisturbed)


def test_a_shard_that_fails_for_good_says_why_at_once_keeps_its_siblings_and_is_computed_alone_next_time(
    llama, corpus, tmp_path, faults
):
    pending, tried = faults
    pending += [None, InputError("this shard is refused; give another one")]
    directory = tmp_path / "index"
    config = index_config(directory, llama, corpus)
    state = index(config, return_state=True)
    assert state.is_failed()
    assert "this shard is refused; give another one" in state.message
    assert len(tried) == 4  # no shard was tried twice
    kept = {path: modification_times(path) for path in finished_shards(directory)}
    assert len(kept) == 3
    tried.clear()
    states = task_states(index, config)
    assert len(tried) == 1
    assert sum(state == "Cached" for name, state in states if "rows" in name) == 3
    assert {path: modification_times(path) for path in kept} == kept


def test_a_corpus_file_that_is_gone_fails_the_run_at_once_with_its_name(llama, corpus, tmp_path):
    state = index(index_config(tmp_path / "index", llama, corpus / "absent.jsonl"), return_state=True)
    assert state.is_failed()
    assert "absent.jsonl" in state.message
