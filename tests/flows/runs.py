"""Running the flows on the small corpus, and looking at what they left."""

from pathlib import Path

import numpy as np
import polars as pl
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from tests.tiny import QUERIES, TEXTS
from trackstar.flows.attribute import attribute
from trackstar.flows.cli.runs import _wait_for_task_runs
from trackstar.flows.config import AttributeConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.storage.layout import LOCK
from trackstar.storage.results import PROPONENT


def index_config(directory, checkpoint, *corpus, shard_size=7, mode="auto", gradient=None, **settings) -> IndexConfig:
    """Shards that the number of documents is no multiple of, and a small projection."""
    return IndexConfig.model_validate(
        {
            "checkpoint": str(checkpoint),
            "index": str(directory),
            "corpus": {"paths": [str(path) for path in corpus], "shard_size": shard_size},
            "gradient": gradient or {"projection_dim": 4},
            "second_moment": {"mode": mode},
            **settings,
        }
    )


def build(directory, checkpoint, *corpus, **settings):
    return index(index_config(directory, checkpoint, *corpus, **settings))


def score(directory, queries, out, **settings):
    """Scores [n q] of all documents in corpus order."""
    config = {"index": str(directory), "queries": str(queries), "out": str(out)}
    attribute(AttributeConfig.model_validate({**config, "score": {"top_k": 0, **settings}}))
    return read_scores(out)


def read_scores(out):
    frame = pl.read_parquet(out / "proponents.parquet").filter(pl.col("kind") == PROPONENT)
    by_pair = {(row["query_id"], row["candidate_id"]): row["score"] for row in frame.iter_rows(named=True)}
    assert len(by_pair) == len(frame) == len(TEXTS) * len(QUERIES)
    return np.array([[by_pair[query["id"], f"d{n}"] for query in QUERIES] for n in range(len(TEXTS))])


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory but its lock, hidden ones included, by its relative name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in _files(directory)}


def modification_times(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in _files(directory)}


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != LOCK]


def task_states(flow, config) -> list[tuple[str, str]]:
    """Run a flow; return the name and the state of each of its task runs, as the server knows them."""
    state = flow(config, return_state=True)
    state.result()
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        _wait_for_task_runs(client, run_id)
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return sorted((run.name, run.state_name) for run in runs)
