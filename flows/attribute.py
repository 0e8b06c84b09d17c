"""Queries to proponents and opponents: once per query set, as a flow, or from a notebook as a table.

from trackstar.flows import attribute

frame = attribute("INDEX", [{"id": "q", "prompt": "The capital of France is", "completion": " Paris"}])
attribute.collapse_duplicates(frame)                      # the best of each set of near-duplicates
attribute.scores("INDEX", "queries.jsonl", ["doc-17"])    # of chosen documents
attribute.by_column("INDEX", "queries.jsonl", "source")   # summed and mean influence of each source
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import polars as pl
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from trackstar.flows.config import AttributeConfig
from trackstar.storage.current import resolved
from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query, read_queries
from trackstar.storage.writer import reading
from trackstar.tasks.index.contents import Index, read_index
from trackstar.tasks.report.results import write_results
from trackstar.tasks.scoring.grouped import candidate_scores, collapse_duplicates, grouped_influence, with_texts
from trackstar.tasks.scoring.rank import encode, rank, rank_together, ranking_table, score_request
from trackstar.tasks.scoring.rerank import rerank
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest

METHOD = "trackstar"
ONE_AT_A_TIME = ThreadPoolTaskRunner(max_workers=1)

Queries = str | Sequence[Mapping[str, Any]]

__all__ = ["attribute", "by_column", "collapse_duplicates", "scores", "table"]


@flow(name="attribute", flow_run_name="attribute {config.subject}", task_runner=ONE_AT_A_TIME)
def attribute(config: AttributeConfig) -> dict[str, Any]:
    """Score every document of an index for every query; return the record of the run."""
    config.check()
    queries = config.asked()
    if config.further_indexes:
        return _together(config, queries)
    with reading(config.index):
        index = read_index(config.index)
        encoded = encode(index, queries)
        ranking = rank(index, encoded, config.score.first_pass, method=METHOD, dask=config.dask)
        ranking = rerank(index, queries, ranking, config.score)
        return write_results(index, queries, encoded, [ranking], config.out)


def _together(config: AttributeConfig, queries: Sequence[Query]) -> dict[str, Any]:
    """Score every document by the sum over several indexes."""
    urls = (config.index, *config.further_indexes)
    with ExitStack() as stack:
        for url in urls:
            stack.enter_context(reading(url))
        indexes = [read_index(url) for url in urls]
        encoded = [encode(index, queries, is_said=number > 0) for number, index in enumerate(indexes)]
        ranking = rank_together(indexes, encoded, config.score, method=METHOD, dask=config.dask)
        return write_results(indexes[0], queries, encoded[0], [ranking], config.out)


@flow(name="attribute-table", task_runner=ONE_AT_A_TIME, validate_parameters=False)
def table(index: str, queries: Queries, *, dask: str = "local", **settings: Any) -> pl.DataFrame:
    """Proponents and opponents with their texts; ``settings`` are those of ``ScoreConfig``."""
    config, asked = ScoreConfig.model_validate(settings), _queries(queries)
    index = resolved(index)
    with reading(index):
        opened = read_index(index)
        config.check()
        ranking = rank(opened, encode(opened, asked), config.first_pass, method=METHOD, dask=dask)
        ranking = rerank(opened, asked, ranking, config)
        return with_texts(ranking_table(ranking, opened), opened)


@flow(name="attribute-scores", task_runner=ONE_AT_A_TIME, validate_parameters=False)
def scores(
    index: str, queries: Queries, candidate_ids: Sequence[str], *, dask: str = "local", **settings: Any
) -> pl.DataFrame:
    """query_id, method, candidate_id and score of chosen documents."""
    index = resolved(index)
    with reading(index):
        return candidate_scores(_request(read_index(index), queries, settings, dask), candidate_ids)


@flow(name="attribute-by-column", task_runner=ONE_AT_A_TIME, validate_parameters=False)
def by_column(index: str, queries: Queries, column: str, *, dask: str = "local", **settings: Any) -> pl.DataFrame:
    """Number of documents, summed and mean influence for each value of a column that the index kept."""
    index = resolved(index)
    with reading(index):
        return grouped_influence(_request(read_index(index), queries, settings, dask), column)


def _request(index: Index, queries: Queries, settings: Mapping[str, Any], dask: str) -> ScoreRequest:
    config = ScoreConfig.model_validate(settings)
    if config.rerank is not None:
        raise InputError(f"rerank is {config.rerank}, and these are scores of the store; leave it out")
    return score_request(index, encode(index, _queries(queries)), config, method=METHOD, dask=dask)


def _queries(queries: Queries) -> list[Query]:
    if isinstance(queries, str):
        return read_queries(queries)
    return [Query.model_validate(query) for query in queries]


class _Module(ModuleType):
    """This module, callable: ``from flows import attribute`` can give nothing but the module that deployments name."""

    def __call__(self, index: str, queries: Queries, *, dask: str = "local", **settings: Any) -> pl.DataFrame:
        return table(index, queries, dask=dask, **settings)


sys.modules[__name__].__class__ = _Module
