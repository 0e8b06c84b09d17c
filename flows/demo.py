"""A real experiment in miniature: train a model on facts, then ask which sentences taught it each of them."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, FlowConfig, IndexConfig, Url
from trackstar.flows.index import index
from trackstar.tasks.demo.corpus import DemoCorpusConfig
from trackstar.tasks.demo.demo import TrainingRequest, train, write_demo_files, write_learnt_queries
from trackstar.tasks.demo.training import TrainingConfig
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.evaluation.tail_patch import TailPatchConfig
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.models.engine import GradientConfig


class DemoConfig(FlowConfig):
    """The demo from nothing: corpus, model, index, queries, comparison."""

    out: Url = Field(title="Directory", description="Everything the demo writes goes below it.")
    corpus: DemoCorpusConfig = DemoCorpusConfig()
    training: TrainingConfig = TrainingConfig()
    gradient: GradientConfig = GradientConfig(projection_dim=32)
    tail_patch: TailPatchConfig = TailPatchConfig(num_proponents=5)
    methods: tuple[str, ...] = Field(("trackstar", "bm25", "random"), title="Methods", description="What is compared.")


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
