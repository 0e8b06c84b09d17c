"""A Prefect server and workers as processes of their own, as an operator starts them, and what the server knows."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun

ROOT = Path(__file__).parents[2]
POOL = "trackstar"
POLL_S = 0.5
RECORDED_AFTER_S = 3.0  # task runs travel to the server as events
START_TIMEOUT_S = 180.0
RUN_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Machine:
    """Where commands run: a directory, and a Prefect home with a result cache of its own."""

    directory: Path
    home: Path
    api_url: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": str(ROOT),
        }

    def prefect(self, *arguments: str) -> str:
        """Run ``prefect …`` to its end; return what it printed."""
        return self._run("prefect", *arguments)

    def trackstar(self, *arguments: str) -> str:
        return self._run("trackstar.flows.cli.commands", *arguments)

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        """Start ``prefect …`` in the background; its output goes to ``NAME.log``."""
        with (self.directory / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "prefect", *arguments]
            return subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def _run(self, module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=self.directory, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{module} {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


def start_server(machine: Machine) -> subprocess.Popen:
    port = machine.api_url.removesuffix("/api").rpartition(":")[2]
    process = machine.start("server", "server", "start", "--host", "127.0.0.1", "--port", port)
    wait_until(lambda: _is_healthy(machine.api_url), START_TIMEOUT_S, "the server answers")
    return process


def start_worker(machine: Machine, name: str) -> subprocess.Popen:
    return machine.start(name, "worker", "start", "--pool", POOL, "--name", name)


def kill_with_children(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it at once: nobody is left to say that anything ended."""
    victims = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until the condition holds; return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{timeout_s:.0f} s have passed without: {what}"
        time.sleep(POLL_S)
    return value


def flow_run(run_id: str) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id)


def flow_runs(flow: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))


def wait_for_end(run_id: str, *, run_count: int = 1) -> FlowRun:
    def ended() -> FlowRun | None:
        run = flow_run(run_id)
        return run if run.run_count >= run_count and run.state.is_final() else None

    return wait_until(ended, RUN_TIMEOUT_S, f"run {run_id} ends")


def task_runs(run_id: str) -> list[TaskRun]:
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])), limit=200)


def task_states(run_id: str) -> Counter[str]:
    """How many task runs of a flow run are in which state, once the server has recorded them all.

    One that was killed stays ``Running`` in the records; its successor in the next attempt is another task run.
    """
    previous, counts = None, Counter()
    while counts != previous or not counts:
        previous = counts
        time.sleep(RECORDED_AFTER_S)
        counts = Counter(run.state_name for run in task_runs(run_id))
    return counts


def _is_healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=POLL_S).is_success
    except httpx.HTTPError:
        return False
