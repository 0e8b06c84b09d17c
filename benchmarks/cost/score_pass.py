"""Claim: a new query set costs little more than reading the store once, and further λ cost next to nothing.

    read      every row of every block as float32, checksums compared, nothing computed
    bases     the factor C of every block read, and the queries whitened by it: once a query set, whatever the corpus
    pass      the scores of all documents for all queries and λ, and the best and worst of them
    direct    the mixed R factored and the corpus whitened by it again, as a method without a low-rank form has to

    python -m benchmarks.cost.score_pass --index DIR [--documents 20000] [--blocks 16] [--dims 4096]
                                         [--rounds 3] [--direct]

Variants take turns in each round; reported are medians of CPU seconds, and of ratios within a round. The direct route
runs once, and its scores are compared with those of the pass.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy import ndarray
from upath import UPath

from benchmarks.cost.random_index import blocks, random_queries, random_shards, whitened
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import QUERY_VECTORS
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_arrays
from trackstar.tasks.index.curvature import (
    AutocorrelationRequest,
    block_rows,
    read_autocorrelation,
    write_autocorrelation,
)
from trackstar.tasks.numerics import curvature, scores
from trackstar.tasks.runtime.dask import compute, part
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.score_pass import Pass, ScoreConfig, _basis, _rank_shard, shard_influences

DAMPING = 0.1
FIVE = (0.0, 0.5, 0.8, 0.9, 0.99)


def cpu_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def read_shard(path: UPath) -> None:
    reader = GradientReader(path)
    for block in reader.block_names:
        for window in reader.windows():
            reader.rows(block, *window)


class Prepared(NamedTuple):
    """An index of random gradients with all that a new query set finds done."""

    index: UPath
    shards: tuple[Artifact, ...]
    R: Artifact
    factors: Artifact
    norms: Artifact

    @property
    def paths(self) -> list[UPath]:
        return [shard.path(str(self.index)) for shard in self.shards]

    @property
    def block_dims(self) -> dict[str, int]:
        return self.shards[0].facts["block_dims"]

    def queries(self, count: int) -> Mapping[str, ndarray]:
        return read_arrays(random_queries(self.index, count, self.block_dims).path(str(self.index)), QUERY_VECTORS)

    def bases(self, num_queries: int) -> dict[str, scores.QueryBasis]:
        vectors = self.queries(num_queries)
        parts = [part(_basis, self.factors.path(str(self.index)), block, vectors[block]) for block in self.block_dims]
        return dict(zip(self.block_dims, compute(parts, where="local"), strict=True))

    def a_pass(self, weights: tuple[float, ...]) -> Pass:
        return Pass(self.norms.path(str(self.index)), weights, ScoreConfig())


def prepare(index: UPath, options: argparse.Namespace) -> Prepared:
    shards = random_shards(
        index,
        num_documents=options.documents,
        block_dims=blocks(options.blocks, options.dims),
        store_as=options.store_as,
    )
    R = build(write_autocorrelation.body, AutocorrelationRequest(index=str(index), shards=shards))
    return Prepared(index, shards, R, *whitened(index, shards, R, damping=DAMPING))


def variants(prepared: Prepared) -> dict[str, Callable]:
    def score(num_queries: int, weights: tuple[float, ...]) -> Callable[[], None]:
        bases, common = prepared.bases(num_queries), prepared.a_pass(weights)
        parts = [part(_rank_shard, path, common, bases, 0, None) for path in prepared.paths]
        return lambda: compute(parts, where="local")

    return {
        "read": lambda: compute([part(read_shard, path) for path in prepared.paths], where="local"),
        "bases, 16 queries": lambda: prepared.bases(16),
        "pass, 16 queries, 1 λ": score(16, (0.9,)),
        "pass, 16 queries, 5 λ": score(16, FIVE),
        "pass, 100 queries, 1 λ": score(100, (0.9,)),
    }


def direct_scores(prepared: Prepared, *, num_queries: int, mixing_weight: float) -> ndarray:
    """[n q] by the definition: R mixed and factored, every document whitened by it."""
    products, norms, query_norms = 0.0, 0.0, 0.0
    vectors = prepared.queries(num_queries)
    for block in prepared.block_dims:
        queries = vectors[block].astype(np.float64)
        R = read_autocorrelation(prepared.R.path(str(prepared.index)), block)
        R[np.diag_indices_from(R)] += DAMPING * curvature.mean_eigenvalue(R)
        mixed = mixing_weight * curvature.gram(queries) / num_queries + (1 - mixing_weight) * R
        C = curvature.damped_factor(mixed, damping=0.0)
        psi_q = curvature.whiten(C, queries)
        whole = [(path, None) for path in prepared.paths]
        of_block = [_whitened(C, psi_q, rows) for rows in block_rows(whole, block)]
        products = products + np.concatenate([found for found, _ in of_block])
        norms = norms + np.concatenate([found for _, found in of_block])
        query_norms = query_norms + curvature.squared_norms(psi_q)
    return products / np.sqrt(norms[:, None] * query_norms)


def _whitened(C: ndarray, psi_q: ndarray, rows: ndarray) -> tuple[ndarray, ndarray]:
    psi = curvature.whiten(C, rows)
    return psi @ psi_q.T, curvature.squared_norms(psi)


def pass_scores(prepared: Prepared, *, num_queries: int, mixing_weight: float) -> ndarray:
    """[n q] by one pass over the store."""
    bases, common = prepared.bases(num_queries), prepared.a_pass((mixing_weight,))
    return np.concatenate(
        [found[0] for path in prepared.paths for _, found in shard_influences(path, common, bases, None)]
    )


def compare_with_direct(prepared: Prepared, *, new_query_set_s: float) -> None:
    start = time.process_time()
    expected = direct_scores(prepared, num_queries=16, mixing_weight=0.9)
    direct_s = time.process_time() - start
    difference = np.abs(pass_scores(prepared, num_queries=16, mixing_weight=0.9) - expected).max()
    print(f"direct: {direct_s:.1f} CPU s, {direct_s / new_query_set_s:.1f} of bases and pass")
    print(f"largest difference of {expected.size:,} scores: {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True, help="directory; kept, and used again")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--store-as", default="float16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", action="store_true", help="also whiten the corpus again, which takes minutes")
    options = parser.parse_args()
    prepared = prepare(UPath(options.index), options)
    names = variants(prepared)
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: cpu_seconds(action) for name, action in names.items()})
    medians = {name: statistics.median(taken[name] for taken in rounds) for name in names}
    print("| what | CPU s | / read |\n|---|---|---|")
    for name, seconds in medians.items():
        ratio = statistics.median(taken[name] / taken["read"] for taken in rounds)
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} |")
    five = statistics.median(taken["pass, 16 queries, 5 λ"] / taken["pass, 16 queries, 1 λ"] for taken in rounds)
    print(f"five λ / one λ: {five:.3f}", flush=True)
    if options.direct:
        compare_with_direct(prepared, new_query_set_s=medians["bases, 16 queries"] + medians["pass, 16 queries, 1 λ"])


if __name__ == "__main__":
    main()
