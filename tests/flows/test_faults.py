import os
import signal
import subprocess
import sys
import time

import pytest
from prefect.settings import get_current_settings

from tests.flows.runs import build, files, modification_times
from tests.tiny import TEXTS

pytestmark = pytest.mark.usefixtures("prefect_server")

START_TIMEOUT_S = 600.0
SHARD_SIZE = 2


def start_index(directory, checkpoint, corpus):
    """``trackstar index`` as a process of its own, on the tests' Prefect server."""
    arguments = ["--checkpoint", checkpoint, "--corpus", corpus, "--index", directory, "--shard-size", SHARD_SIZE]
    return subprocess.Popen(
        [sys.executable, "-m", "trackstar.flows.cli.commands", "index", *map(str, arguments), "--projection-dim", "4"],
        env=server_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def server_environment():
    """That of a process on the tests' Prefect server."""
    return {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}


def wait_for_shards(directory, count, process):
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(finished_shards(directory)) < count:
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finished_shards(directory):
    return [path.parent for path in directory.glob("shards/*/manifest.json") if not path.parent.name.startswith(".")]


def test_a_killed_run_is_taken_up_where_it_was_and_leaves_the_bytes_of_an_undisturbed_one(llama, corpus, tmp_path):
    directory, undisturbed = tmp_path / "index", tmp_path / "undisturbed"
    build(directory, llama, corpus, shard_size=SHARD_SIZE)
    directory.rename(undisturbed)

    process = start_index(directory, llama, corpus)
    try:
        wait_for_shards(directory, 3, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (directory / "index.json").exists()
    survivors = {path.name: modification_times(path) for path in finished_shards(directory)}
    assert 3 <= len(survivors) < len(TEXTS) / SHARD_SIZE
    interrupted = (
        directory / "shards" / f".{next(iter(survivors))}.partial-0123abcd"
    )  # whether or not the kill left one
    interrupted.mkdir()

    build(directory, llama, corpus, shard_size=SHARD_SIZE)
    assert files(directory) == files(undisturbed)
    for name, times in survivors.items():
        assert modification_times(directory / "shards" / name) == times
