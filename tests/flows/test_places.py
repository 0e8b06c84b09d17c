"""Prefect's troubles, devices and places are one sentence, quickly."""

import os
import socket
import subprocess
import sys
import time

import pytest

from trackstar.flows.places import Place, require_device, require_place, require_prefect, require_server, require_where
from trackstar.storage.errors import InputError


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_does_not_answer_is_known_at_once(closed_port, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed_port}/api")
    started = time.monotonic()
    with pytest.raises(InputError, match=f"{closed_port}/api, where no Prefect server answers; start it with"):
        require_prefect()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("url", ["junk", "ftp://127.0.0.1/api", "http://127.0.0.1:port/api", "http:///api"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="PREFECT_API_URL is"):
        require_server(url)


@pytest.mark.parametrize("home", ["{file}", "{file}/below", "/proc/absent"])
def test_a_home_that_cannot_be_written_to_is_refused(home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", home.format(file=tmp_path / "file"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(InputError, match=r"Prefect cannot write to its home .*; set PREFECT_HOME to another"):
        require_prefect()


@pytest.mark.parametrize("first", ["import prefect", "pass"])
def test_a_notebook_outside_the_clone_has_our_defaults(first, tmp_path):
    script = (
        f"{first}\nimport trackstar.flows\nfrom prefect.settings import get_current_settings\n"
        "server = get_current_settings().server\n"
        "assert server.ephemeral.startup_timeout_seconds == 180\nassert not server.analytics_enabled"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_SERVER")}
    environment = {**clean, "PREFECT_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)


def test_what_the_environment_says_comes_before_our_defaults(tmp_path):
    script = "import os, trackstar.flows\nassert os.environ['PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS'] == '7'"
    environment = {**os.environ, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "7"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)


def test_a_scheduler_that_listens_is_accepted_and_one_that_does_not_is_named(closed_port):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        require_where(f"tcp://127.0.0.1:{listener.getsockname()[1]}", name="--dask")
    with pytest.raises(InputError, match=r"--dask is .*, where no Dask scheduler answers"):
        require_where(f"127.0.0.1:{closed_port}", name="--dask")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_devices_that_every_machine_has_are_accepted(device):
    require_device(device, name="--device")


def test_a_new_directory_may_be_below_one_that_is_not_there(tmp_path):
    require_place(str(tmp_path / "a" / "b"), Place.NEW, name="--out")
    require_place(str(tmp_path), Place.NEW, name="--out")
    (tmp_path / "loop").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"loop is no directory; give a directory"):
        require_place(str(tmp_path / "loop" / "b"), Place.NEW, name="--out")
