"""Ctrl-C and SIGTERM: nothing more is begun, the process is gone in time, and one line says how to go on."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.flows.test_faults import finished_shards, server_environment
from tests.tiny import TEXTS
from trackstar.flows.cli import stopping
from trackstar.flows.cli.running import stopped
from trackstar.flows.config import CompareConfig, MnistConfig, ReindexConfig

START_TIMEOUT_S = 240.0
SLOW_MACHINE_S = 10.0  # what a busy machine may add to any time that is promised
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What the work does is put in for WORK; it says "begun" when it is under way.
SCRIPT = """
import subprocess, sys, time
from trackstar.flows.cli.stopping import stoppable
from trackstar.tasks.runtime.stop import check_stop

def work():
    print("begun", flush=True)
WORK

print(stoppable(work, sentence=lambda: "stopped; go on"))
"""
HEEDS = """
    while True:
        check_stop()
        time.sleep(0.05)
"""
IS_DEAF = "    time.sleep(600)"
HAS_A_CHILD = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    time.sleep(600)
"""
RESETS_HANDLERS = "    import polars" + HEEDS  # polars takes over SIGINT when it is imported
ENDS = "    time.sleep(3)\n    return 'done'"


def begin(work):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("WORK", work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        restore_signals=True,
    )
    assert process.stdout.readline() == "begun\n"
    return process


def end(process, *numbers):
    """Send signals; return the exit code, both outputs, and how long the end took."""
    started = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(1)
    output, error = process.communicate(timeout=60)
    return process.returncode, output, error, time.monotonic() - started


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("work", [HEEDS, RESETS_HANDLERS], ids=["plain", "polars"])
def test_a_signal_ends_work_that_heeds_it_with_the_signals_exit_code_and_one_line(number, work):
    code, output, error, _ = end(begin(work), number)
    assert (code, output, error) == (128 + number, "", "stopped; go on\n")


def test_work_that_does_not_heed_a_signal_is_ended_after_a_while():
    code, _, error, took_s = end(begin(IS_DEAF), signal.SIGTERM)
    assert (code, error) == (143, "stopped; go on\n")
    assert stopping.GRACE_S <= took_s + 1 < stopping.GRACE_S + SLOW_MACHINE_S


def test_a_second_signal_ends_the_process_at_once():
    code, _, error, took_s = end(begin(IS_DEAF), signal.SIGINT, signal.SIGINT)
    assert (code, error) == (130, "stopped; go on\n")
    assert took_s < stopping.GRACE_S


def test_the_processes_that_a_stopped_one_started_end_with_it():
    process = begin(HAS_A_CHILD)
    child = psutil.Process(int(process.stdout.readline()))
    end(process, signal.SIGTERM)
    psutil.wait_procs([child], timeout=SLOW_MACHINE_S)
    assert not child.is_running()


def test_work_that_is_done_when_a_signal_comes_gives_its_result():
    code, output, _, _ = end(begin(ENDS), signal.SIGINT)
    assert (code, output) == (0, "done\n")


def test_an_error_of_the_work_is_raised_where_it_was_asked_for():
    def work():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        stopping.stoppable(work, sentence=lambda: "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CompareConfig(index="/i", queries="/q.jsonl", out="/o"), "/i"),
        (ReindexConfig(checkpoints="/c", indexes="/many", corpus={"paths": ["/d"]}), "/many"),
        (MnistConfig(out="/study"), "/study"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_line_names_where_finished_work_lies_and_the_command_that_goes_on(config, kept):
    assert f"is kept in {kept}; the same command goes on from there: trackstar x" in stopped(config, "trackstar x")


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("number", SIGNALS)
def test_an_index_that_is_told_to_stop_in_the_middle_of_a_shard_stops_there_and_keeps_the_shards_before(
    llama, tmp_path, number
):
    corpus, directory = tmp_path / "corpus.jsonl", tmp_path / "index"
    texts = [TEXTS[row % len(TEXTS)] for row in range(20_000)]
    corpus.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(texts)))
    arguments = ["--checkpoint", llama, "--corpus", corpus, "--index", directory, "--projection-dim", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trackstar.flows.cli.commands", "index", *arguments, "--shard-size", "600"],
        env=server_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(finished_shards(directory)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    code, output, error, took_s = end(process, number)
    assert (code, output) == (128 + number, "")
    assert took_s < stopping.GRACE_S + SLOW_MACHINE_S
    assert error.count("\n") == 1
    assert error.startswith(f"stopped; whatever was finished is kept in {directory}; ")
    assert 2 <= len(finished_shards(directory)) < 20
    assert not (directory / "index.json").exists()
