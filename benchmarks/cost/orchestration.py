"""Claim: Prefect around the shards costs at most 5 % of what the shards themselves cost.

    bare           the stage's function on each shard, in a loop
    orchestrated   the same shards as task runs of a flow: cache keys, retries, events, records
    per task run   the same difference for a stage that does nothing, over many runs

    python benchmarks/cost/orchestration.py --checkpoint DIR --corpus FILE [--shard-sizes 300 900] [--rounds 5]

Both take their turn in each round, on the same documents, into directories of their own. CPU time of this process is
counted as well as the clock, since the machine is shared; the server is a process of its own. Medians over rounds.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

from trackstar.storage.corpus import corpus_files, plan_shards
from trackstar.storage.manifest import Draft
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import EngineSpec, GradientConfig
from trackstar.tasks.runtime.stage import Stage, StageRequest, build, gather, stage

NUM_EMPTY_RUNS = 100


class EmptyRequest(StageRequest):
    """A task run with nothing to do."""

    kind: ClassVar[str] = "empty"
    version: ClassVar[int] = 1

    number: int

    @property
    def label(self) -> str:
        return f"empty {self.number}"

    def inputs(self) -> dict[str, Any]:
        return {"number": self.number}


@stage
def do_nothing(request: EmptyRequest, draft: Draft) -> None:
    """Write an artifact without files."""


@flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
def orchestrated(stage: Stage, requests: Sequence[StageRequest]) -> None:
    gather(stage.map(requests))


def bare(stage: Stage, requests: Sequence[StageRequest]) -> None:
    for request in requests:
        build(stage.body, request)


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """The clock's and the CPU's."""
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cpu


def compare(stage: Stage, requests_in: Callable[[str], list[StageRequest]], *, rounds: int) -> list[list[tuple]]:
    """Seconds of bare and of orchestrated runs, round by round, after one of each that is not counted."""
    measured: list[list[tuple]] = [[], []]
    for number in range(rounds + 1):
        for times, run in zip(measured, (bare, orchestrated), strict=True):
            directory = tempfile.mkdtemp()
            requests = requests_in(directory)
            taken = seconds(lambda run=run, requests=requests: run(stage, requests))
            if number:
                times.append(taken)
            shutil.rmtree(directory)
    return measured


def median(times: Sequence[tuple], which: int) -> float:
    return statistics.median(pair[which] for pair in times)


def report_shards(options: argparse.Namespace, shard_size: int) -> None:
    (file,) = corpus_files([options.corpus])
    shards = list(plan_shards(file, shard_size=shard_size, text_column="text"))

    def requests_in(directory: str) -> list[StageRequest]:
        gradient = GradientConfig(projection_dim=options.projection_dim)
        engine = EngineSpec(
            index=directory, checkpoint=checkpoint, model=ModelConfig(), gradient=gradient, second_moment=None
        )
        return shard_requests(engine, CorpusConfig(paths=(options.corpus,)), shards, store_as="float32")

    checkpoint = read_checkpoint(options.checkpoint)
    plain, run = compare(index_shard, requests_in, rounds=options.rounds)
    share = statistics.median(after[1] / before[1] - 1 for before, after in zip(plain, run, strict=True))
    print(
        f"{len(shards)} shards of {shard_size} documents, {median(plain, 1) / len(shards):.2f} CPU s each: "
        f"bare {median(plain, 0):.2f} s, orchestrated {median(run, 0):.2f} s; "
        f"CPU {median(plain, 1):.2f} and {median(run, 1):.2f} s, {100 * share:+.1f} %"
    )


def report_empty(rounds: int) -> None:
    def requests_in(directory: str) -> list[StageRequest]:
        return [EmptyRequest(index=directory, number=number) for number in range(NUM_EMPTY_RUNS)]

    plain, run = compare(do_nothing, requests_in, rounds=rounds)
    clock, cpu = (1000 * (median(run, which) - median(plain, which)) / NUM_EMPTY_RUNS for which in (0, 1))
    print(
        f"per task run: {clock:.1f} ms by the clock, {cpu:.1f} ms CPU (flow run included, {NUM_EMPTY_RUNS} task runs)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", required=True, type=lambda path: str(Path(path).absolute()))
    parser.add_argument("--corpus", required=True, type=lambda path: str(Path(path).absolute()))
    parser.add_argument("--projection-dim", type=int, default=32)
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[300, 900])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with prefect_test_harness(server_startup_timeout=180):
        for shard_size in options.shard_sizes:
            report_shards(options, shard_size)
        report_empty(options.rounds)


if __name__ == "__main__":
    main()
