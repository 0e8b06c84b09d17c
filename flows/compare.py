"""The same queries through every method: metrics, tail-patch and the report."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from trackstar.flows.config import CompareConfig
from trackstar.storage.writer import reading
from trackstar.tasks.evaluation.entailment import judged
from trackstar.tasks.evaluation.evidence import labelled
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.evaluation.tail_patch import TailPatchRequest, measure_tail_patch
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.methods.registry import Comparison
from trackstar.tasks.report.artifacts import publish_metrics
from trackstar.tasks.report.comparison import Measured, write_comparison
from trackstar.tasks.report.explanation import ExplanationConfig, explain
from trackstar.tasks.report.results import write_results
from trackstar.tasks.scoring.rank import encode


@flow(name="compare", flow_run_name="compare {config.subject}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def compare(config: CompareConfig) -> Metrics:
    """Rank an index for every query by each method, and measure the rankings."""
    config.check()
    with reading(config.index):
        return _compare(config)


def _compare(config: CompareConfig) -> Metrics:
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
