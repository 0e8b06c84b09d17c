"""One Prefect server, the shipped deployments, and two machines that share nothing but the storage."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.integration.services import POOL, ROOT, Machine, free_port, kill_with_children, start_server, start_worker
from tests.tiny import QUERIES
from trackstar.tasks.demo.corpus import DemoCorpusConfig, build_demo_corpus, write_demo_corpus


@pytest.fixture(scope="session")
def machine(tmp_path_factory) -> Iterator[Machine]:
    """The machine with the server; the shipped ``prefect.yaml`` is deployed from its directory."""
    directory = tmp_path_factory.mktemp("clone")
    here = Machine(directory, directory / "home", f"http://127.0.0.1:{free_port()}/api")
    server = start_server(here)
    try:
        with temporary_settings({PREFECT_API_URL: here.api_url}):
            (directory / "prefect.yaml").write_text(_shipped_deployments())
            here.prefect("work-pool", "create", POOL, "--type", "process")
            here.prefect("--no-prompt", "deploy", "--all")
            yield here
    finally:
        kill_with_children(server)


@pytest.fixture(scope="session")
def other_machine(machine) -> Machine:
    """Another Prefect home: it has never seen a result of the first machine."""
    return Machine(machine.directory, machine.directory / "other-home", machine.api_url)


@pytest.fixture(scope="session")
def other_worker(other_machine) -> Iterator[None]:
    worker = start_worker(other_machine, "second")
    yield
    kill_with_children(worker)


@pytest.fixture(scope="session")
def training(machine) -> Path:
    """The directory that the shipped deployment of ``reindex`` names, with its corpus and its standing queries."""
    directory = machine.directory / "training"
    write_demo_corpus(build_demo_corpus(DemoCorpusConfig(num_queries=6, num_decoys=1)), directory / "corpus")
    (directory / "corpus" / "queries.jsonl").unlink()
    (directory / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    return directory


def _shipped_deployments() -> str:
    """``prefect.yaml`` as it is, but for a projection and gates that fit the tests' models."""
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (reindex,) = (d for d in shipped["deployments"] if d["entrypoint"] == "trackstar.flows.reindex.reindex")
    configs = [reindex["parameters"]["config"], reindex["triggers"][0]["parameters"]["config"]]
    for config in configs:
        config["gradient"] = {"projection_dim": 4}
        config["gates"] = {"probability": 1, "mrr": 1}  # two steps of a tiny model may as well lose what was learnt
    return yaml.safe_dump(shipped, sort_keys=False)
