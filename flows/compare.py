"""The same queries through every method: metrics, tail-patch and the report."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import CompareConfig
from tasks.artifacts import publish_metrics
from tasks.attribution import encode, write_results
from tasks.comparison import Measured, write_comparison
from tasks.entailment import judged
from tasks.evaluation import Metrics
from tasks.evidence import labelled
from tasks.explanation import ExplanationConfig, explain
from tasks.index import read_index
from tasks.methods import Comparison
from tasks.tail_patch import TailPatchRequest, measure_tail_patch


@flow(name="compare", flow_run_name="compare {config.subject}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def compare(config: CompareConfig) -> Metrics:
    """Rank an index for every query by each method, and measure the rankings."""
    config.check()
    index = read_index(config.index)
    asked = config.asked()
    encoded = encode(index, asked)
    comparison = Comparison(index, asked, encoded, config.settings)
    rankings = tuple(comparison.rank_by(method) for method in config.methods)
    queries, pool = judged(index, labelled(asked, index), rankings, config.judge)
    run = write_results(index, queries, encoded, rankings, config.out)
    patch = TailPatchRequest(
        index=config.index,
        shards=index.shards,
        engine=index.engine,
        queries=tuple(asked),
        rankings=rankings,
        config=config.tail_patch,
    )
    tail_patch = measure_tail_patch(patch) if config.tail_patch.num_proponents else None
    settings = ExplanationConfig(score=config.score, tokens=config.token_influence, dask=config.dask)
    explained = explain(index, queries, encoded, rankings, settings)
    measured = Measured(encoded, rankings, pool, tail_patch, explained)
    metrics = write_comparison(index, queries, measured, out=config.out, run=run)
    publish_metrics(metrics, config.out)
    return metrics
