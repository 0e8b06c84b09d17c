"""What the tests share: small real checkpoints, a small corpus, and one Prefect server.

A session may run in several processes (``-n``). What costs much is made once for all of them, by the first that asks.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads: tiny matrices gain nothing from more
os.environ.setdefault("DO_NOT_TRACK", "1")

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# Nothing heavy is imported above fixtures: the process that hands out tests to the others runs none itself.

SHARED_DIRECTORY = "TRACKSTAR_TESTS_SHARED_DIRECTORY"
MOST_PROCESSES = 4  # each holds a gigabyte


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes ``-n auto`` starts: one a core that this process may use."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_cores, MOST_PROCESSES)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # xdist's own sign of a process that was started by another one
        return
    directory = Path(tempfile.mkdtemp(prefix="trackstar-tests-"))
    os.environ[SHARED_DIRECTORY] = str(directory)
    config.add_cleanup(lambda: _remove(directory))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "numerics":
            item.add_marker(pytest.mark.numerical)


def _remove(directory: Path) -> None:
    from tests.server import stop_server

    stop_server(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def made_once() -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a directory of the session by its name; the first process that asks for it fills it."""
    shared = Path(os.environ[SHARED_DIRECTORY])

    def directory(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                draft = Path(tempfile.mkdtemp(dir=shared))
                fill(draft)
                draft.rename(shared / name)
        return shared / name

    return directory


@pytest.fixture(scope="session")
def llama(made_once) -> Path:
    """A two-layer Llama with Adafactor's optimizer state."""
    from tests.tiny import save_llama

    return made_once("llama", lambda directory: save_llama(directory / "checkpoint")) / "checkpoint"


@pytest.fixture(scope="session")
def gpt2(made_once, llama) -> Path:
    """A two-layer GPT-2, whose weights are stored transposed, with Adam's optimizer state."""
    from tests.tiny import save_gpt2

    return made_once("gpt2", lambda directory: save_gpt2(directory / "checkpoint", tokenizer_of=llama)) / "checkpoint"


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A directory of two corpus files."""
    return write_corpus(tmp_path / "corpus")


def write_corpus(directory: Path) -> Path:
    from tests.tiny import TEXTS

    directory.mkdir()
    half = len(TEXTS) // 2
    for number, part in enumerate((range(half), range(half, len(TEXTS)))):
        lines = [json.dumps({"id": f"d{index}", "text": TEXTS[index]}) + "\n" for index in part]
        (directory / f"part-{number}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture
def indexed(prefect_server, made_once, llama, tmp_path) -> Callable[..., Path]:
    """Return a copy of the index of ``llama`` and ``corpus`` with some settings, which is built once a session."""
    from tests.flows.runs import build

    def copy_of(**settings) -> Path:
        def fill(directory: Path) -> None:
            build(directory / "index", llama, write_corpus(directory / "corpus"), **settings)

        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return shutil.copytree(made_once(f"index-{name}", fill) / "index", tmp_path / "index")

    return copy_of


@pytest.fixture
def queries(tmp_path) -> Path:
    from tests.tiny import QUERIES

    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    return path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """The session's Prefect server, with results in a directory of this process: nothing is cached from other runs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )

    from tests.server import running_server

    settings = {
        PREFECT_API_URL: running_server(Path(os.environ[SHARED_DIRECTORY])),
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # costs a second a flow run
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("prefect-results"),
    }
    with temporary_settings(settings):
        yield
        for worker in (APILogWorker, EventsWorker):  # what they still hold is for this server
            worker.drain_all()


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    import torch

    torch.set_num_threads(1)
