"""Claim: what docs/scale.md predicts for a large corpus, from constants of a small one, is what a large one takes.

    python -m benchmarks.cost.scale_simulation [--small 50000] [--large 1000000] [--blocks 4] [--dims 256]

Random vectors go through every stage over the store, once few and once many; the time of each stage for many is
predicted from that for few, in proportion to the documents, and compared. CPU seconds of one process.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from upath import UPath

from benchmarks.cost.random_index import blocks, random_queries, random_shards, through_every_stage
from trackstar.storage.manifest import Artifact
from trackstar.tasks.runtime.stage import Stage, StageRequest, build

SHARD_SIZE = 16_384
WHATEVER_THE_CORPUS = ("factors", "spectrum")


def cpu_seconds(index: UPath, num_documents: int, block_dims: dict[str, int]) -> dict[str, float]:
    """Of each stage over a new store."""
    start = time.process_time()
    shards = random_shards(index, num_documents=num_documents, block_dims=block_dims, shard_size=SHARD_SIZE)
    taken = {"writing the store": time.process_time() - start}

    def timed(stage: Stage, request: StageRequest) -> Artifact:
        start = time.process_time()
        artifact = build(stage.body, request)
        taken[request.kind] = time.process_time() - start
        return artifact

    through_every_stage(index, shards, random_queries(index, 16, block_dims), timed)
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
        if name in WHATEVER_THE_CORPUS:
            continue
        predicted = seconds * options.large / options.small
        print(f"| {name} | {seconds:.2f} | {predicted:.1f} | {large[name]:.1f} | {large[name] / predicted:.2f} |")


if __name__ == "__main__":
    main()
