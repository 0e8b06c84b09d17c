import http.server
import json
import logging
import threading
import time

import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings
from transformers import AutoModelForCausalLM

from tests.trainer import train
from trackstar.tasks.models.optimizer_state import read_second_moments
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.second_moment import dense
from trackstar.tasks.reindex.announce import announce_checkpoint, save_second_moments
from trackstar.tasks.reindex.checkpoints import find_checkpoints


@pytest.fixture
def events():
    """What a server at a loopback port was sent, and its address."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            yield received
        server.shutdown()


@pytest.mark.filterwarnings("default")  # torch and accelerate warn about themselves
def test_a_trainer_announces_each_save_once_the_checkpoint_is_whole(llama, tmp_path, events):
    model = train(llama, tmp_path / "run")
    assert [event["event"] for event in events] == ["checkpoint.saved"] * 2
    assert [event["payload"]["step"] for event in events] == [2, 4]
    found = find_checkpoints(str(tmp_path / "run"))
    assert [(checkpoint.step, checkpoint.missing) for checkpoint in found] == [(2, None), (4, None)]
    assert events[1]["payload"]["path"] == found[1].path
    last, matrices = tmp_path / "run" / "checkpoint-4", find_weight_matrices(model)
    ours = read_second_moments(last, model, matrices)
    (last / "second_moment.safetensors").unlink()
    optimizers = read_second_moments(last, model, matrices)
    for name, V in ours.items():
        assert torch.equal(dense(V), dense(optimizers[name])), name


def test_a_server_that_is_not_there_is_a_warning(tmp_path, caplog):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), caplog.at_level(logging.WARNING):
        assert not announce_checkpoint(tmp_path / "step-3")
    assert "step-3 is not announced" in caplog.text


def test_a_server_that_never_answers_holds_training_up_for_seconds_only(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.reindex.announce.TIMEOUT_S", 0.2)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as silent:  # accepts, never reads
        started = time.monotonic()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{silent.server_port}/api"}):
            assert not announce_checkpoint(tmp_path / "step-3")
    assert time.monotonic() - started < 5  # what httpx waits by itself
    assert "not announced" in caplog.text


def test_an_optimizer_of_another_model_leaves_no_file_and_a_warning(llama, tmp_path, caplog):
    model = AutoModelForCausalLM.from_pretrained(llama)
    stranger = torch.optim.Adam(torch.nn.Linear(3, 3).parameters())
    assert not save_second_moments(tmp_path, model=model, optimizer=stranger)
    assert list(tmp_path.iterdir()) == []
    assert "keeps no second moments" in caplog.text
