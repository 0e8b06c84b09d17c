"""Claim: what docs/scale.md predicts for a large corpus, from constants of a small one, is what a large one takes.

    python -m benchmarks.scale_simulation [--small 50000] [--large 1000000] [--blocks 4] [--dims 256]

Random vectors go through every stage over the store, once few and once many; the time of each stage for many is
predicted from that for few, in proportion to the documents, and compared. CPU seconds of one process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

from upath import UPath

from benchmarks.random_index import blocks, random_queries, random_shards
from tasks.curvature import AutocorrelationRequest, write_autocorrelation
from tasks.scores import ScoreConfig, ScoreRequest, rank_candidates
from tasks.stage import build
from tasks.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    write_factors,
    write_spectrum,
    write_train_norms,
)

SHARD_SIZE = 16_384


def cpu_seconds(index: UPath, num_documents: int, block_dims: dict[str, int]) -> dict[str, float]:
    """Of each stage over a new store."""
    taken: dict[str, float] = {}

    def timed(name: str, action: Callable):
        start = time.process_time()
        result = action()
        taken[name] = time.process_time() - start
        return result

    url = str(index)
    shards = timed(
        "write the store",
        lambda: random_shards(index, num_documents=num_documents, block_dims=block_dims, shard_size=SHARD_SIZE),
    )
    queries = random_queries(index, 16, block_dims)
    common = {"index": url, "shards": shards}
    R = timed("R_train", lambda: build(write_autocorrelation.body, AutocorrelationRequest(**common)))
    factors = build(write_factors.body, FactorRequest(index=url, autocorrelation=R, damping=0.1))
    spectrum = build(write_spectrum.body, SpectrumRequest(autocorrelation=R, **common))
    norms = timed("norms", lambda: build(write_train_norms.body, TrainNormsRequest(factors=factors, **common)))
    whitening = {"factors": factors, "spectrum": spectrum, "train_norms": norms, **common}
    request = ScoreRequest(method="trackstar", config=ScoreConfig(), queries=queries, **whitening)
    timed("16 queries", lambda: build(rank_candidates.body, request))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=50_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--dims", type=int, default=256)
    options = parser.parse_args()
    runs = []
    for count in (options.small, options.large):
        with tempfile.TemporaryDirectory() as directory:
            runs.append(cpu_seconds(UPath(directory), count, blocks(options.blocks, options.dims)))
    small, large = runs
    print(f"| stage | {options.small:,}: CPU s | {options.large:,}: predicted | measured | measured / predicted |")
    print("|---|---|---|---|---|")
    for name, seconds in small.items():
        predicted = seconds * options.large / options.small
        print(f"| {name} | {seconds:.2f} | {predicted:.1f} | {large[name]:.1f} | {large[name] / predicted:.2f} |")


if __name__ == "__main__":
    main()
