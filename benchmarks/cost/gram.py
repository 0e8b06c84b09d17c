"""Claim: R_train is summed at no less than 80 % of the speed of a plain matrix product of the same FLOPs.

    gram      float32 rows widened to float64, their symmetric product added in place: half the FLOPs, twice the width
    float32   x.T @ y of the same shapes, 2 n d² FLOPs, all in float32
    float64   the same in float64

    python -m benchmarks.cost.gram [--dims 4096] [--rows 1024] [--rounds 7]

Variants take turns in each round on one thread; reported are medians of CPU seconds and of ratios within a round.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from trackstar.tasks.numerics.curvature import add_gram, empty_gram


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((options.rows, options.dims), dtype=np.float32) for _ in range(2))
    wide_x, wide_y, total = x.astype(np.float64), y.astype(np.float64), empty_gram(options.dims)
    actions = {
        "gram": lambda: add_gram(total, x),
        "float32": lambda: x.T @ y,
        "float64": lambda: wide_x.T @ wide_y,
    }
    rounds = [{name: _cpu_seconds(action) for name, action in actions.items()} for _ in range(options.rounds + 1)][1:]
    flops = 2 * options.rows * options.dims**2
    print("| product | GFLOP/s | speed of gram / its own |\n|---|---|---|")
    for name in actions:
        seconds = statistics.median(taken[name] for taken in rounds)
        ratio = statistics.median(taken[name] / taken["gram"] for taken in rounds)
        print(f"| {name} | {flops / seconds / 1e9:.0f} | {ratio:.2f} |")


def _cpu_seconds(action) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


if __name__ == "__main__":
    main()
