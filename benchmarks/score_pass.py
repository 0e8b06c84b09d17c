"""Claim: a new query set costs little more than reading the store once, and further λ cost next to nothing.

    read      every row of every block as float32, checksums compared, nothing computed
    bases     the factor C of every block read, and the queries whitened by it: once a query set, whatever the corpus
    pass      the scores of all documents for all queries and λ, and the best and worst of them
    direct    the corpus whitened again by a new R, as a method without a low-rank form has to: the norms' stage

    python -m benchmarks.score_pass --index DIR [--documents 20000] [--blocks 16] [--dims 4096] [--rounds 3]

Variants take turns in each round; reported are medians of CPU seconds, and of ratios within a round.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

from upath import UPath

from benchmarks.random_index import blocks, random_queries, random_shards, whitened
from storage.gradients import GradientReader
from storage.layout import QUERY_VECTORS
from storage.manifest import Artifact
from storage.matrices import read_arrays
from tasks.curvature import ROWS_AT_ONCE, AutocorrelationRequest, write_autocorrelation
from tasks.dask_compute import compute, part
from tasks.scores import Pass, ScoreConfig, _basis, _rank_shard
from tasks.stage import build

FIVE = (0.0, 0.5, 0.8, 0.9, 0.99)


def cpu_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def read_shard(path: UPath) -> None:
    reader = GradientReader(path)
    for block in reader.block_names:
        for _ in reader.chunks(block, num_rows=ROWS_AT_ONCE):
            pass


def prepare(index: UPath, options: argparse.Namespace) -> tuple[tuple[Artifact, ...], Artifact, Artifact, float]:
    """Shards, factors, norms, and the CPU seconds of the norms."""
    shards = random_shards(
        index, num_documents=options.documents, block_dims=blocks(options.blocks, options.dims), dtype=options.dtype
    )
    R = build(write_autocorrelation.body, AutocorrelationRequest(index=str(index), shards=shards))
    start = time.process_time()
    factors, norms = whitened(index, shards, R, damping=0.1)
    return shards, factors, norms, time.process_time() - start


def variants(index: UPath, shards: tuple[Artifact, ...], factors: Artifact, norms: Artifact) -> dict[str, Callable]:
    paths = [shard.path(str(index)) for shard in shards]
    block_dims = shards[0].facts["block_dims"]

    def bases(num_queries: int) -> dict:
        vectors = read_arrays(random_queries(index, num_queries, block_dims).path(str(index)), QUERY_VECTORS)
        parts = [part(_basis, factors.path(str(index)), block, vectors[block]) for block in block_dims]
        return dict(zip(block_dims, compute(parts, where="local"), strict=True))

    def score(num_queries: int, weights: tuple[float, ...]) -> Callable[[], None]:
        ready = bases(num_queries)
        common = Pass(norms.path(str(index)), weights, ScoreConfig())
        return lambda: compute([part(_rank_shard, path, common, ready, 0, None) for path in paths], where="local")

    return {
        "read": lambda: compute([part(read_shard, path) for path in paths], where="local"),
        "bases, 16 queries": lambda: bases(16),
        "pass, 16 queries, 1 λ": score(16, (0.9,)),
        "pass, 16 queries, 5 λ": score(16, FIVE),
        "pass, 100 queries, 1 λ": score(100, (0.9,)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True, help="directory; kept, and used again")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shards, factors, norms, direct = prepare(UPath(options.index), options)
    names = variants(UPath(options.index), shards, factors, norms)
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: cpu_seconds(action) for name, action in names.items()})
    print("| what | CPU s | / read |\n|---|---|---|")
    for name in names:
        ratio = statistics.median(taken[name] / taken["read"] for taken in rounds)
        print(f"| {name} | {statistics.median(taken[name] for taken in rounds):.2f} | {ratio:.2f} |")
    five = statistics.median(taken["pass, 16 queries, 5 λ"] / taken["pass, 16 queries, 1 λ"] for taken in rounds)
    print(f"five λ / one λ: {five:.3f}")
    if direct > 1:  # measured in this run, not found finished
        print(f"direct: {direct:.1f} CPU s for factors and norms")


if __name__ == "__main__":
    main()
