"""Claim: ten times the documents take no more memory, in any stage over the store or the texts.

    python -m benchmarks.cost.memory [--documents 4096] [--blocks 4] [--dims 1024] [--dask-workers 1]

Each stage runs in a process of its own, forked after everything was imported; reported is its peak resident memory, and
what of it lies above the process before the stage.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dask
from upath import UPath

from benchmarks.cost.random_index import blocks, random_queries, random_shards, through_every_stage
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query
from trackstar.tasks.index.contents import require_documents
from trackstar.tasks.methods.bm25 import BaselineRequest, rank_by_baseline
from trackstar.tasks.methods.settings import BM25, RANDOM
from trackstar.tasks.methods.tracin import TracInRequest, rank_by_tracin
from trackstar.tasks.runtime.stage import Stage, StageRequest, build

FORK = multiprocessing.get_context("fork")
MIB = 1024  # ru_maxrss is in KiB


def apart(action: Callable[[], Artifact]) -> tuple[Artifact, float, float]:
    """What an action gives, and the resident memory of a process of its own before and at the peak, in MiB."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
        sender.send((action(), before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB))

    process = FORK.Process(target=run)
    process.start()
    result = receiver.recv()
    process.join()
    return result


def peaks(index: UPath, num_documents: int, block_dims: dict[str, int]) -> dict[str, Sequence[float]]:
    """Per stage, its memory before and at the peak."""
    found: dict[str, Sequence[float]] = {}
    shards, *_ = apart(lambda: random_shards(index, num_documents=num_documents, block_dims=block_dims))
    queries, *_ = apart(lambda: random_queries(index, 16, block_dims))

    def stage(which: Stage, request: StageRequest, name: str | None = None) -> Artifact:
        artifact, before, peak = apart(lambda: build(which.body, request))
        found[name or request.kind] = before, peak
        return artifact

    through_every_stage(index, shards, queries, stage)
    of_tracin = {"shards": (shards,), "queries": (queries,), "unit_norm": True, "top_k": 10, "index": str(index)}
    stage(rank_by_tracin, TracInRequest(method="grad_cosine", **of_tracin), "grad_cosine")
    asked = tuple(Query(id=f"q{number}", prompt=f"w{number + 1} w9 w99", completion=" w999") for number in range(16))
    for method in (BM25, RANDOM):
        request = BaselineRequest(index=str(index), shards=shards, method=method, queries=asked, top_k=10)
        stage(rank_by_baseline, request, method)
    _, *found["distinct ids"] = apart(lambda: require_documents(shards, index=str(index)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--dims", type=int, default=1024)
    parser.add_argument("--dask-workers", type=int, default=1)
    options = parser.parse_args()
    block_dims = blocks(options.blocks, options.dims)
    with dask.config.set(num_workers=options.dask_workers):
        runs = []
        for count in (options.documents, 10 * options.documents):
            with tempfile.TemporaryDirectory() as directory:
                runs.append(peaks(UPath(directory), count, block_dims))
    few, many = runs
    counts = f"{options.documents:,} documents | {10 * options.documents:,} documents"
    print(f"| stage, peak MiB | {counts} | ratio | above the start, MiB |\n|---|---|---|---|---|")
    for kind, (before, peak) in few.items():
        more_before, more = many[kind]
        print(
            f"| {kind} | {peak:.0f} | {more:.0f} | {more / peak:.2f} | {peak - before:.0f} → {more - more_before:.0f} |"
        )


if __name__ == "__main__":
    main()
