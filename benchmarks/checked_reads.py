"""Claim: holding every read against the manifest costs a pass over the store at most three percent.

    read    every row of every block as float32, nothing computed
    pass    the scores of all documents for 16 queries at one λ, and the best and worst of them

python -m benchmarks.checked_reads --index DIR [--documents 4096] [--blocks 16] [--dims 1024] [--rounds 30]

With and without take turns; reported are medians of CPU seconds, and of the ratio within a round.
"""

import argparse
import os
import statistics
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import zarr
from upath import UPath

from benchmarks.cost.score_pass import cpu_seconds, prepare, variants
from trackstar.storage.zarr_groups import zarr_store

MEASURED = ("read", "pass, 16 queries, 1 λ")


def unchecked_group(directory: UPath, name: str) -> zarr.Group:
    """What zarr reads by itself: the CRC-32C of each chunk, and no manifest."""
    return zarr.open_group(zarr_store(directory / name, read_only=True), mode="r", zarr_format=3)


def unchecked_seconds(action) -> float:
    with mock.patch("trackstar.storage.gradients.read_group", unchecked_group):
        return cpu_seconds(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    for name, default in (("documents", 4096), ("blocks", 16), ("dims", 1024), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float16")
    options = parser.parse_args()
    actions = variants(prepare(UPath(options.index).absolute(), options))
    for name in MEASURED:
        action = actions[name]
        action()
        rounds = [(cpu_seconds(action), unchecked_seconds(action)) for _ in range(options.rounds)]
        checked, unchecked = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(with_it / without for with_it, without in rounds)
        print(f"{name}: {checked:.3f} s checked, {unchecked:.3f} s not, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
