"""A real experiment in miniature: train a model on facts, then ask which sentences taught it each of them."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, DemoConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.tasks.demo.demo import TrainingRequest, train, write_demo_files, write_learnt_queries
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.index.corpus import CorpusConfig


@flow(name="demo", flow_run_name="demo {config.out}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def demo(config: DemoConfig) -> Metrics:
    """Train a small model on facts about countries, index its corpus, ask about what it has learnt, and compare."""
    files = write_demo_files(config.corpus, f"{config.out}/corpus")
    checkpoint = train(TrainingRequest(index=config.out, files=files, config=config.training))
    queries = write_learnt_queries(files, checkpoint, config.out)
    index_directory = f"{config.out}/index"
    index(
        IndexConfig(
            checkpoint=str(checkpoint.path(config.out)),
            index=index_directory,
            corpus=CorpusConfig(paths=files.corpus),
            gradient=config.gradient,
        )
    )
    return compare(
        CompareConfig(
            index=index_directory,
            queries=queries,
            out=f"{config.out}/results",
            methods=config.methods,
            tail_patch=config.tail_patch,
        )
    )
