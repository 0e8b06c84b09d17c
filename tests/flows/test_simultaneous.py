"""Several processes at one index: whoever changes it waits for the other; whoever asks waits for nobody."""

import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from tests.flows.runs import build, files, index_config, score
from tests.flows.test_faults import SHARD_SIZE, finished_shards, server_environment, start_index, wait_for_shards
from trackstar.flows.cli.tables import verify_index
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import LockedError
from trackstar.storage.removal import artifacts
from trackstar.storage.verification import findings
from trackstar.storage.writer import TIMEOUT_VARIABLE, changing
from trackstar.tasks.index.contents import read_index, write_index
from trackstar.tasks.index.withdrawals import read_tombstones
from trackstar.tasks.scoring.rank import rank

pytestmark = pytest.mark.usefixtures("prefect_server")

WAIT_TIMEOUT_S = 240
OUTDATED = ("autocorrelation", "factors", "train_norms", "spectrum")  # by a withdrawal, but for the new R_train


@pytest.fixture
def patient(monkeypatch):
    """Writers wait for each other as long as a busy machine needs."""
    monkeypatch.setenv(TIMEOUT_VARIABLE, str(WAIT_TIMEOUT_S))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")


def start_withdraw(directory, *ids):
    command = ["withdraw", "--index", str(directory), "--ids", *ids, "--reason", f"asked for {' '.join(ids)}"]
    return subprocess.Popen(
        [sys.executable, "-m", "trackstar.flows.cli.commands", *command],
        env=server_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def held_elsewhere(directory):
    """Another thread changes the index; to this one it is as another process."""
    is_held, may_end = threading.Event(), threading.Event()

    def hold():
        with changing(directory):
            is_held.set()
            may_end.wait(WAIT_TIMEOUT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(WAIT_TIMEOUT_S)
    try:
        yield
    finally:
        may_end.set()
        thread.join()


def withdrawn(directory):
    found = read_index(str(directory))
    return set(read_tombstones(found.tombstones, str(directory))["id"])


def test_two_runs_into_one_directory_at_once_both_end_and_leave_the_bytes_of_one_alone(
    llama, corpus, tmp_path, patient
):
    directory, alone = tmp_path / "index", tmp_path / "alone"
    build(directory, llama, corpus, shard_size=SHARD_SIZE)
    directory.rename(alone)

    processes = [start_index(directory, llama, corpus) for _ in range(2)]
    assert [process.wait(timeout=WAIT_TIMEOUT_S) for process in processes] == [0, 0]
    assert files(directory) == files(alone)


def test_of_two_withdrawals_at_once_both_are_recorded(llama, corpus, tmp_path, patient):
    build(tmp_path / "index", llama, corpus)
    processes = [start_withdraw(tmp_path / "index", id_) for id_ in ("d3", "d7")]
    assert [process.wait(timeout=WAIT_TIMEOUT_S) for process in processes] == [0, 0]
    assert withdrawn(tmp_path / "index") == {"d3", "d7"}
    assert read_index(str(tmp_path / "index")).num_withdrawn == 2


def test_withdrawing_and_repairing_while_an_index_grows_take_nothing_from_it(llama, corpus, tmp_path, patient):
    directory = tmp_path / "index"
    half = sorted(corpus.iterdir())[0]
    build(directory, llama, half, shard_size=SHARD_SIZE)
    growing = start_index(directory, llama, corpus)
    wait_for_shards(directory, 7, growing)  # two of the five new ones
    leaving = start_withdraw(directory, "d3")
    is_sound = verify_index(str(directory), repair=True).is_sound
    assert is_sound
    assert [process.wait(timeout=WAIT_TIMEOUT_S) for process in (growing, leaving)] == [0, 0]
    found = read_index(str(directory))
    assert (found.total("num_documents"), found.num_withdrawn, withdrawn(directory)) == (20, 1, {"d3"})
    assert [finding for finding in findings(found.path) if finding is not None] == []
    assert len(finished_shards(directory)) == 10


def test_whoever_changes_an_index_is_refused_while_another_does_and_changes_nothing(
    llama, corpus, queries, tmp_path, impatient
):
    directory = tmp_path / "index"
    built = build(directory, llama, corpus)
    (built.shard_paths[0] / "documents.parquet").write_bytes(b"damaged")
    before = files(directory)
    attempts = [
        lambda: index(index_config(directory, llama, corpus)),
        lambda: withdraw(WithdrawConfig(index=str(directory), ids=("d3",))),
        lambda: verify_index(str(directory), repair=True),
    ]
    with held_elsewhere(directory):
        held = files(directory)
        for attempt in attempts:
            with pytest.raises(LockedError, match="is being changed by process"):
                attempt()
        assert files(directory) == held
    assert files(directory) == before


def test_an_index_is_asked_while_another_process_changes_it(llama, corpus, queries, tmp_path, impatient):
    build(tmp_path / "index", llama, corpus)
    with held_elsewhere(tmp_path / "index"):
        score(tmp_path / "index", queries, tmp_path / "out", mixing_weight=0.9)
        verify_index(str(tmp_path / "index"), repair=False)


def test_a_query_ends_as_it_began_when_documents_are_withdrawn_in_the_middle_of_it(
    llama, corpus, queries, tmp_path, monkeypatch
):
    directory = tmp_path / "index"
    built = build(directory, llama, corpus)
    shutil.copytree(directory, tmp_path / "undisturbed")
    expected = score(tmp_path / "undisturbed", queries, tmp_path / "expected", mixing_weight=0.9)

    def rank_an_index_that_changed(*arguments, **options):
        withdraw(WithdrawConfig(index=str(directory), ids=("d3",)))
        return rank(*arguments, **options)

    monkeypatch.setattr("trackstar.flows.attribute.rank", rank_an_index_that_changed)
    np.testing.assert_array_equal(score(directory, queries, tmp_path / "out", mixing_weight=0.9), expected)
    monkeypatch.undo()
    assert withdrawn(directory) == {"d3"}
    outdated = {path for path in artifacts(built.path) if path.parent.name in OUTDATED}
    assert len(outdated) == 5
    write_index(read_index(str(directory)))  # as the next index or withdraw does, now that nobody reads
    assert [path.parent.name for path in outdated if path.exists()] == ["autocorrelation"]
