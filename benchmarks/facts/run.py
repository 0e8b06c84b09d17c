"""Claim: BM25 finds the passages that state a fact, TrackStar those that a further training step is served by.

    python -m benchmarks.facts.run [--out DIR] [--seeds 0,1,2] [--methods a,b,...] [--dense-encoder DIR]
                                   [--results FILE]

A corpus of real facts, each queried one stated 1, 2–3, 4–10 or more than 10 times, a model trained on it from scratch,
and 240 queries in a phrasing that was never seen about their own fact: every method, by how often the fact occurs and
by whether the model answers correctly. A run that was interrupted goes on where it was.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.facts.corpus import FactsConfig, build_facts_corpus, write_facts_corpus
from benchmarks.facts.outcome import Run, read_outcome
from benchmarks.facts.page import markdown
from benchmarks.page import publish
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.tasks.demo.demo import DemoCorpusFiles, TrainingRequest, train
from trackstar.tasks.demo.training import TrainingConfig
from trackstar.tasks.evaluation.tail_patch import TailPatchConfig
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.methods.registry import DENSE
from trackstar.tasks.models.engine import GradientConfig

METHODS = (
    "trackstar", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_dot", "grad_cosine", "bm25",
    DENSE, "hybrid", "random",
)  # fmt: skip
TRAINING = TrainingConfig(vocabulary_size=4096, hidden_size=128, intermediate_size=384, num_layers=3, num_epochs=16)
GRADIENT = GradientConfig(projection_dim=32)
NUM_TRAINED_ON = 10  # proponents of each query and method


@flow(name="facts", task_runner=ThreadPoolTaskRunner(max_workers=1))
def trace_facts(
    files: DemoCorpusFiles, out: str, training: TrainingConfig, methods: tuple[str, ...], dense_encoder: str | None
) -> None:
    """Train on the corpus, index it, and compare the methods on every query."""
    checkpoint = train(TrainingRequest(index=out, files=files, config=training))
    index(
        IndexConfig(
            checkpoint=str(checkpoint.path(out)),
            index=f"{out}/index",
            corpus=CorpusConfig(paths=files.corpus),
            gradient=GRADIENT,
        )
    )
    compare(
        CompareConfig(
            index=f"{out}/index",
            queries=files.queries,
            out=f"{out}/results",
            methods=methods,
            dense_encoder=dense_encoder,
            tail_patch=TailPatchConfig(num_proponents=NUM_TRAINED_ON),
        )
    )


def run_seed(seed: int, out: Path, *, num_epochs: int, methods: tuple[str, ...], dense_encoder: str | None) -> Run:
    """Train, index and compare with one seed, or go on where that was left."""
    corpus = build_facts_corpus(FactsConfig(seed=seed))
    corpus_file, queries_file = write_facts_corpus(corpus, out / "corpus")
    files = DemoCorpusFiles(corpus=(str(corpus_file),), queries=str(queries_file))
    training = TRAINING.model_copy(update={"seed": seed, "num_epochs": num_epochs})
    trace_facts(files, str(out), training, methods, dense_encoder)
    return Run(seed, corpus, read_outcome(out / "results", queries_file, corpus.frequencies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/facts"), help="Everything is written below it.")
    parser.add_argument("--seeds", default="0", help="Comma-separated, each of a corpus and of its model.")
    parser.add_argument("--epochs", type=int, default=TRAINING.num_epochs)
    parser.add_argument("--methods", help="Comma-separated; differences are to the first. By default all there are.")
    parser.add_argument("--dense-encoder", help="A local sentence encoder, without which the method dense is left out.")
    parser.add_argument("--results", type=Path, help="A file for the page, which is printed too.")
    arguments = parser.parse_args()
    possible = [method for method in METHODS if method != DENSE or arguments.dense_encoder]
    methods = tuple(arguments.methods.split(",") if arguments.methods else possible)
    settings = {"num_epochs": arguments.epochs, "methods": methods, "dense_encoder": arguments.dense_encoder}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = [run_seed(seed, arguments.out.absolute() / f"seed-{seed}", **settings) for seed in seeds]
    encoder = " --dense-encoder DIR" if arguments.dense_encoder else ""
    command = f"python -m benchmarks.facts.run --seeds {arguments.seeds} --epochs {arguments.epochs}{encoder}"
    publish(markdown(runs, command=command), arguments.results)


if __name__ == "__main__":
    main()
