"""Claim: the whole ``index`` flow costs little more than the bare engine on the same documents.

    python benchmarks/cost/flow_overhead.py --checkpoint DIR --corpus FILE... [--documents 20000] [--projection-dim 32]

The corpus's documents are repeated under distinct ids up to the number asked for. CPU time of this process, in turns:

    engine   token ids in, vectors out: what the arithmetic takes
    shards   reading, tokenising, the engine, the store, manifests: the stage as the flow runs it, without Prefect
    flow     planning, shards and the index under Prefect, with a server that is running already, R_train left out
    R_train  the reduction on its own: it is no part of the engine's work, and for short documents no small one
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import polars as pl
import torch

from trackstar.flows.config import IndexConfig
from trackstar.storage.corpus import plan_shards
from trackstar.storage.manifest import Artifact
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.index.shards import batch_documents, index_shard, shard_requests
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.models.engine import EngineSpec, open_engine
from trackstar.tasks.models.tokens import tokenize_documents
from trackstar.tasks.runtime.stage import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--corpus", required=True, nargs="+")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--projection-dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = repeated(arguments.corpus, arguments.documents, Path(scratch) / "corpus.jsonl")
        measure(arguments, corpus, Path(scratch))


def repeated(paths: list[str], count: int, path: Path) -> Path:
    """The documents of the files, over and over, each time under another id."""
    texts = pl.concat([pl.read_ndjson(source).select("text") for source in paths])["text"]
    rows = range(count)
    pl.DataFrame({"id": [f"d{row}" for row in rows], "text": [texts[row % len(texts)] for row in rows]}).write_ndjson(
        path
    )
    return path


def measure(arguments: argparse.Namespace, corpus: Path, scratch: Path) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from trackstar.flows.index import index as flow

    def config(directory: Path) -> IndexConfig:
        values = {
            "checkpoint": arguments.checkpoint,
            "index": str(directory),
            "corpus": {"paths": [str(corpus)]},
            "gradient": {"projection_dim": arguments.projection_dim},
            "second_moment": {"mode": "none"},
        }
        return IndexConfig.model_validate(values)

    rounds: dict[str, list[float]] = {"engine": [], "shards": [], "flow": [], "R_train": []}
    with prefect_test_harness(server_startup_timeout=180):
        for number in range(arguments.rounds):
            base = config(scratch / f"index-{number}")
            spec = engine_spec(base, scratch / f"shards-{number}")
            with open_engine(spec):
                pass  # loading is shared by all, and counted nowhere
            rounds["engine"].append(engine_seconds(spec, corpus))
            finished, seconds = timed(shards, spec, base)
            rounds["shards"].append(seconds)
            rounds["R_train"].append(timed(reduction, spec, finished)[1])
            rounds["flow"].append(timed(flow, base)[1] - rounds["R_train"][-1])
    print("| what | CPU s | / engine |\n|---|---|---|")
    for name, seconds in rounds.items():
        ratio = statistics.median(s / e for s, e in zip(seconds, rounds["engine"], strict=True))
        print(f"| {name} | {statistics.median(seconds):.1f} | {ratio:.3f} |")


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    started = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - started


def engine_spec(config: IndexConfig, directory: Path) -> EngineSpec:
    checkpoint = read_checkpoint(config.checkpoint)
    common = {"model": config.model, "gradient": config.gradient, "second_moment": None}
    return EngineSpec(index=str(directory), checkpoint=checkpoint, **common)


def engine_seconds(spec: EngineSpec, corpus: Path) -> float:
    texts = pl.read_ndjson(corpus)["text"].to_list()
    with open_engine(spec) as opened:
        rows = batch_documents(opened.block_dims)
        sequences = tokenize_documents(opened.tokenizer, texts)
        started = time.process_time()
        for start in range(0, len(sequences), rows):
            part = sequences[start : start + rows]
            opened.gradients(part, first_targets=[1] * len(part))
    return time.process_time() - started


def shards(spec: EngineSpec, config: IndexConfig) -> tuple[Artifact, ...]:
    (file,) = config.corpus.files()
    planned = list(plan_shards(file, shard_size=config.corpus.shard_size))
    requests = shard_requests(spec, config.corpus, planned, store_as=config.store_as)
    return tuple(build(index_shard.body, request) for request in requests)


def reduction(spec: EngineSpec, finished: tuple[Artifact, ...]) -> None:
    build(write_autocorrelation.body, AutocorrelationRequest(index=spec.index, shards=finished))


if __name__ == "__main__":
    main()
