"""Claim: a question is answered while one looks, and over a large index for little more than reading it once.

    cold     `trackstar ask` in a process of its own, beside importing torch and transformers' model alone in another
    warm     ask() in a process that has asked before
    large    a warm pass over a store of random gradients that does not fit in memory, beside reading that store once

    python -m benchmarks.cost.ask --index DEMO/index [--rounds 5] [--large DIR --documents 100000 --blocks 16 …]

Variants take turns in each round; reported are medians of CPU seconds, of seconds by the clock, and of ratios within a
round.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from upath import UPath

from benchmarks.cost.random_index import blocks, random_shards
from trackstar.storage.gradients import ROWS_AT_ONCE, GradientReader
from trackstar.storage.layout import FACTORS, MATRICES, norms_file
from trackstar.storage.manifest import Artifact, is_complete, new_artifact
from trackstar.storage.matrices import write_arrays
from trackstar.storage.triangles import create_triangles, write_lower
from trackstar.tasks.asking.corpus_side import CorpusSide
from trackstar.tasks.asking.gradient_scan import read_queries_by, scan
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.curvature import AutocorrelationRequest
from trackstar.tasks.models.checkpoint import Checkpoint, ModelConfig
from trackstar.tasks.models.engine import EngineSpec, GradientConfig
from trackstar.tasks.runtime.stage import StageRequest, finished
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.whitening import PLAIN_NORMS, TRAIN_NORMS, FactorRequest, TrainNormsRequest

PROMPT, COMPLETION = "The city from which Togo is ruled is called", " Lomé"
DAMPING = 0.1
IMPORTS = {
    "torch": "import torch",
    "torch, transformers and its Llama": "from transformers import AutoTokenizer, LlamaForCausalLM",
}
CONFIG = ScoreConfig(whitening="train", damping=DAMPING)


def child_cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def cold(index: str, rounds: int) -> None:
    asked = ["-m", "trackstar.flows.cli.commands", "ask", "--index", index, PROMPT, COMPLETION]
    times: dict[str, list[float]] = {name: [] for name in ["trackstar ask", *IMPORTS]}
    for _ in range(rounds):
        times["trackstar ask"].append(child_cpu_seconds(*asked))
        for name, code in IMPORTS.items():
            times[name].append(child_cpu_seconds("-c", code))
    for name, seconds in times.items():
        ratios = [whole / part for whole, part in zip(times["trackstar ask"], seconds, strict=True)]
        print(f"cold   {name:36s} {statistics.median(seconds):6.2f} CPU s, ask / it {statistics.median(ratios):.2f}")


def warm(path: str, rounds: int) -> None:
    import trackstar

    index = trackstar.open(path)
    index.ask(PROMPT, COMPLETION, methods=["trackstar", "bm25"])
    variants = {
        "ask": lambda: index.ask(PROMPT, COMPLETION),
        "ask, the model's own completion": lambda: index.ask(PROMPT),
        "ask, with bm25": lambda: index.ask(PROMPT, COMPLETION, methods=["trackstar", "bm25"]),
        "complete": lambda: index.complete(PROMPT),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(4 * rounds):
        for name, action in variants.items():
            times[name].append(timed(action))
    for name, seconds in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"warm   {name:36s} {cpu:6.3f} CPU s, {wall:.3f} s by the clock")
    print(f"       kept in memory: {index.memory.used_bytes / 2**20:.0f} MiB of {index.memory.limit_bytes / 2**20:.0f}")


def large(root: UPath, *, num_documents: int, block_dims: dict[str, int], rounds: int) -> None:
    index = random_index(root, num_documents, block_dims)
    factor_bytes = 8 * sum(dims**2 for dims in block_dims.values())
    memory = Memory(factor_bytes + 16 * num_documents * len(block_dims) + (1 << 20))  # factors and norms, and no rows
    side = CorpusSide(index, damping=DAMPING, memory=memory)
    candidates = Candidates(index.shards, str(root), None)
    rng = np.random.default_rng(0)
    vectors = {block: rng.standard_normal((1, dims)).astype(np.float32) for block, dims in block_dims.items()}

    def question() -> None:
        reading = read_queries_by(side, vectors, CONFIG)
        scan(side, candidates, reading, num_ranked=1, advance=lambda count, found: None)

    print(f"large  {num_documents:,} documents, {len(block_dims)} blocks, {index.path}")
    before = resident_bytes()
    times: dict[str, list[tuple[float, float]]] = {"read": [], "question": []}
    question()  # reads the factors
    for _ in range(rounds):
        times["read"].append(timed(lambda: read_store(candidates)))
        times["question"].append(timed(question))
    for name, seconds in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"large  {name:36s} {cpu:6.2f} CPU s, {wall:.2f} s by the clock")
    pairs = list(zip(times["question"], times["read"], strict=True))
    for place, unit in enumerate(("CPU", "clock")):
        ratio = statistics.median(question[place] / read[place] for question, read in pairs)
        print(f"large  question / read, {unit}: {ratio:.2f}")
    grown = (resident_bytes() - before) / 2**20
    print(f"large  kept: {memory.used_bytes / 2**20:,.0f} MiB; the process grew by {grown:,.0f} MiB")


def read_store(candidates: Candidates) -> None:
    """Every row as float32, checksums compared: by as many threads as a question has."""
    from concurrent.futures import ThreadPoolExecutor

    from trackstar.tasks.asking.gradient_scan import THREADS

    def read(path: UPath) -> None:
        reader = GradientReader(path)
        for block in reader.block_names:
            for start in range(0, reader.num_rows, ROWS_AT_ONCE):
                for _ in reader.row_parts(block, start, min(start + ROWS_AT_ONCE, reader.num_rows)):
                    pass

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, candidates.paths))


def random_index(root: UPath, num_documents: int, block_dims: dict[str, int]) -> Index:
    """Random gradients, and factors and norms that cost nothing to make: only their sizes count here."""
    shards = random_shards(root, num_documents=num_documents, block_dims=block_dims)
    R = written(AutocorrelationRequest(index=str(root), shards=shards), lambda path: triangles(path / MATRICES, {}))
    R = R.model_copy(update={"facts": {"num_documents": num_documents, "block_dims": block_dims, "sample": None}})
    factors = written(
        FactorRequest(index=str(root), autocorrelation=R, damping=DAMPING),
        lambda path: triangles(path / FACTORS, block_dims),
    )

    def norms(path: UPath) -> None:
        for shard in shards:
            ones = np.full((shard.facts["num_documents"], len(block_dims)), 10.0)
            write_arrays(path / norms_file(shard.path(str(root)).name), {TRAIN_NORMS: ones, PLAIN_NORMS: ones})

    written(TrainNormsRequest(index=str(root), shards=shards, factors=factors), norms)
    engine = EngineSpec(
        index=str(root),
        checkpoint=Checkpoint(path="none", digest="none", optimizer_digest=None),
        model=ModelConfig(),
        gradient=GradientConfig(),
        second_moment=None,
    )
    return Index(engine=engine, corpus=CorpusConfig(paths=("none",)), shards=shards, autocorrelation=R)


def written(request: StageRequest, fill: Callable[[UPath], None]) -> Artifact:
    if not is_complete(request.directory, request.identity()):
        with new_artifact(request.directory, kind=request.kind, identity=request.identity()) as draft:
            fill(draft.path)
    return finished(request)


def triangles(path: UPath, block_dims: Mapping[str, int]) -> None:
    create_triangles(path)
    for block, dims in block_dims.items():
        write_lower(path, block, np.tril(np.full((dims, dims), 1e-4)) + np.eye(dims))


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--dims", type=int, default=4096)
    options = parser.parse_args()
    if options.index:
        cold(options.index, options.rounds)
        warm(options.index, options.rounds)
    if options.large:
        block_dims = blocks(options.blocks, options.dims)
        large(UPath(options.large), num_documents=options.documents, block_dims=block_dims, rounds=options.rounds)


if __name__ == "__main__":
    main()
