"""Queries to proponents and opponents: once per query set."""

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import AttributeConfig
from tasks.attribution import encode, rank, write_results
from tasks.index import read_index

METHOD = "trackstar"


@flow(name="attribute", flow_run_name="attribute {config.subject}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def attribute(config: AttributeConfig) -> dict[str, Any]:
    """Score every document of an index for every query; return the record of the run."""
    config.check()
    queries = config.asked()
    index = read_index(config.index)
    encoded = encode(index, queries)
    ranking = rank(index, encoded, config.score, method=METHOD, dask=config.dask)
    return write_results(index, queries, encoded, [ranking], config.out)
