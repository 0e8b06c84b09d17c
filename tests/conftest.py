"""Small real checkpoints, a small corpus, and one Prefect server for all tests that run a flow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads: tiny matrices gain nothing from more
os.environ.setdefault("DO_NOT_TRACK", "1")

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import QUERIES, TEXTS, save_gpt2, save_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A two-layer Llama with Adafactor's optimizer state."""
    return save_llama(tmp_path_factory.mktemp("llama") / "checkpoint")


@pytest.fixture(scope="session")
def gpt2(llama, tmp_path_factory) -> Path:
    """A two-layer GPT-2, whose weights are stored transposed, with Adam's optimizer state."""
    return save_gpt2(tmp_path_factory.mktemp("gpt2") / "checkpoint", tokenizer_of=llama)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A directory of two corpus files."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    half = len(TEXTS) // 2
    for number, part in enumerate((range(half), range(half, len(TEXTS)))):
        lines = [json.dumps({"id": f"d{index}", "text": TEXTS[index]}) + "\n" for index in part]
        (directory / f"part-{number}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture
def queries(tmp_path) -> Path:
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    return path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A Prefect server of its own, with its results in a directory of its own: nothing is cached from other runs."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    settings = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # costs a second a flow run
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("prefect-results"),
    }
    with prefect_test_harness(server_startup_timeout=180), temporary_settings(settings):
        yield


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)
