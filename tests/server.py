"""The Prefect server of a test session: the first process that needs it starts it, the end of the session stops it."""

import os
import socket
import sys
import time
from pathlib import Path

import httpx
import psutil
from filelock import FileLock

START_TIMEOUT_S = 240.0
POLL_S = 0.1
PID, URL = "server.pid", "server.url"
# The tests need the flow and task runs that the server records, and none of what it does on its own.
IDLE_SERVICES = (
    "CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "EVENT_PERSISTER", "FOREMAN", "LATE_RUNS",
    "PAUSE_EXPIRATIONS", "REPOSSESSOR", "SCHEDULER", "TRIGGERS",
)  # fmt: skip


def running_server(directory: Path) -> str:
    """Return the URL of the server whose files are in a directory; start it if nobody has."""
    with FileLock(directory / "server.lock"):
        if not (directory / URL).exists():
            _start(directory)
        return (directory / URL).read_text()


def stop_server(directory: Path) -> None:
    """End the server of a directory, whichever process started it; do nothing where none was."""
    if not (directory / PID).exists():
        return
    try:
        server = psutil.Process(int((directory / PID).read_text()))
        server.terminate()
        server.wait(10)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        server.kill()


def _start(directory: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
    where = ["--host", address[0], "--port", str(address[1]), "--log-level", "error", "--lifespan", "on"]
    environment = {
        **os.environ,
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in IDLE_SERVICES},
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{directory / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_FINAL": "1",
    }
    # No Popen, as the server outlives this process; in a group of its own, as it outlives Ctrl-C until it is stopped.
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", *where]
    pid = os.posix_spawn(sys.executable, command, environment, setpgroup=0)
    (directory / PID).write_text(str(pid))
    url = f"http://{address[0]}:{address[1]}/api"
    _wait_until_it_answers(url)
    (directory / URL).write_text(url)


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(url):
        assert time.monotonic() < deadline, f"no Prefect server at {url} after {START_TIMEOUT_S:.0f} s"
        time.sleep(POLL_S)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False
