"""A server of the tiny llama index: its application for one client, and on a port for many and for a browser."""

import threading
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from tests.asking.conftest import asked_corpus, llama_index  # noqa: F401  fixtures
from trackstar.tasks.asking.settings import AskConfig
from trackstar.tasks.serving import server
from trackstar.tasks.serving.app import make_app
from trackstar.tasks.serving.served_indexes import ServedIndexes
from trackstar.tasks.serving.settings import ServingConfig


@pytest.fixture(scope="session")
def served(llama_index):  # noqa: F811
    return ServedIndexes([str(llama_index.path)], AskConfig())


@pytest.fixture
def client(served):
    with client_of(served) as client:
        yield client


def client_of(served, *, host="localhost:8765", token=None, **config):
    app = make_app(served, ServingConfig(**config), token=token)
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False)


@contextmanager
def listening(served, **config):
    """The address of a real server, on a port of its own."""
    found, ready = [], threading.Event()

    def on_ready(address, own):
        found.extend((address, own))
        ready.set()

    how = {"host": "127.0.0.1", "port": 0, "token": None, "ready": on_ready, "is_warmed": False}
    thread = threading.Thread(target=server.serve, args=(served, ServingConfig(**config)), kwargs=how)
    thread.start()
    assert ready.wait(30)
    try:
        yield found[0].rstrip("/")
    finally:
        found[1].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def address(served):
    with listening(served, queue=4) as address:
        yield address
