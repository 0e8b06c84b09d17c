"""Claim: BM25 finds the passages that state a fact, TrackStar those that a further training step is served by.

    python -m benchmarks.facts [--out DIR] [--seed 0] [--methods a,b,...] [--results FILE]

A corpus of real facts, each queried one stated 1, 2–3, 4–10 or more than 10 times, a model trained on it from scratch,
and 240 queries in a phrasing that was never seen about their own fact: every method, by how often the fact occurs and
by whether the model answers correctly. A run that was interrupted goes on where it was.
"""

import argparse
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import polars as pl
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.facts_corpus import BUCKETS, FactsConfig, FactsCorpus, bucket_of, build_facts_corpus, write_facts_corpus
from flows.compare import compare
from flows.config import CompareConfig, IndexConfig
from flows.index import index
from storage.layout import RUN, TAIL_PATCH, location
from storage.queries import Query, read_queries
from storage.results import PROPONENT, read_json, read_proponents
from tasks.corpus import CorpusConfig
from tasks.demo import DemoCorpusFiles, TrainingRequest, train
from tasks.engine import GradientConfig
from tasks.evaluation import TAIL_PATCH as TAIL_PATCH_METRIC
from tasks.evaluation import Estimate, Metrics, evaluate
from tasks.tail_patch import TailPatchConfig
from tasks.training import TrainingConfig

METHODS = (
    "trackstar", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_dot", "grad_cosine", "bm25",
    "hybrid", "random",
)  # fmt: skip
TRAINING = TrainingConfig(vocabulary_size=4096, hidden_size=128, intermediate_size=384, num_layers=3, num_epochs=16)
GRADIENT = GradientConfig(projection_dim=32)
NUM_TRAINED_ON = 10  # proponents of each query and method
SHOWN = ("mrr", "hit_at_10", "recall_at_10", TAIL_PATCH_METRIC)
RIGHT, WRONG = "answered correctly", "answered wrongly"
STATES, OWN_DECOY = "states the fact", "decoy of the query"
FIRST_KINDS = (STATES, OWN_DECOY, "decoy", "practice", "statement", "plain", "background")


@dataclass(frozen=True)
class Outcome:
    """The result table of a comparison, and what it is grouped by."""

    frame: pl.DataFrame
    tail_patch: pl.DataFrame
    queries: Sequence[Query]
    frequencies: Mapping[str, int]
    is_right: Mapping[str, bool]

    def metrics(self, group: str | None = None) -> Metrics:
        """Of all queries, or of a frequency bucket, or of those that the model answers correctly or wrongly."""
        chosen = [query for query in self.queries if group in (None, *self._groups(query.id))]
        of_them = pl.col("query_id").is_in([query.id for query in chosen])
        return evaluate(self.frame.filter(of_them), chosen, tail_patch=self.tail_patch.filter(of_them))

    def without_decoys(self) -> "Outcome":
        """The same rankings with the decoys taken out: what is below them moves up."""
        kept = self.frame.filter(~pl.col("candidate_id").str.starts_with("decoy/")).sort("rank")
        place = pl.int_range(1, pl.len() + 1).over("query_id", "method", "kind").cast(pl.UInt32)
        return replace(self, frame=kept.with_columns(rank=place))

    def first_kinds(self, corpus: FactsCorpus) -> dict[str, dict[str, int]]:
        """Method to what the first proponents of its queries are, and how often."""
        kinds = {document.id: document.kind for document in corpus.documents}
        own = {(query.id, name) for query in self.queries for name in query.relevant_ids or ()}
        counts: dict[str, dict[str, int]] = {}
        first = self.frame.filter((pl.col("kind") == PROPONENT) & (pl.col("rank") == 1))
        for query_id, method, candidate_id in first.select("query_id", "method", "candidate_id").iter_rows():
            kind = STATES if (query_id, candidate_id) in own else kinds[candidate_id]
            kind = OWN_DECOY if candidate_id.startswith(f"decoy/{query_id}/") else kind
            of_method = counts.setdefault(method, dict.fromkeys(FIRST_KINDS, 0))
            of_method[kind] += 1
        return counts

    def share_right(self, group: str | None = None) -> float:
        chosen = [query.id for query in self.queries if group in (None, *self._groups(query.id))]
        return sum(self.is_right[name] for name in chosen) / len(chosen)

    def groups(self) -> list[str]:
        """Those that hold a query."""
        present = {group for query in self.queries for group in self._groups(query.id)}
        return [group for group in (*BUCKETS, RIGHT, WRONG) if group in present]

    def _groups(self, query_id: str) -> tuple[str, str]:
        return bucket_of(self.frequencies[query_id]), RIGHT if self.is_right[query_id] else WRONG


@flow(name="facts", task_runner=ThreadPoolTaskRunner(max_workers=1))
def trace_facts(
    corpus_file: str, queries_file: str, out: str, training: TrainingConfig, methods: tuple[str, ...]
) -> None:
    """Train on the corpus, index it, and compare the methods on every query."""
    files = DemoCorpusFiles(corpus=(corpus_file,), queries=queries_file)
    checkpoint = train(TrainingRequest(index=out, files=files, config=training))
    index(
        IndexConfig(
            checkpoint=str(checkpoint.path(out)),
            index=f"{out}/index",
            corpus=CorpusConfig(paths=files.corpus),
            gradient=GRADIENT,
        )
    )
    compare(
        CompareConfig(
            index=f"{out}/index",
            queries=queries_file,
            out=f"{out}/results",
            methods=methods,
            tail_patch=TailPatchConfig(num_proponents=NUM_TRAINED_ON),
        )
    )


def read_outcome(results: Path, queries_file: Path, frequencies: Mapping[str, int]) -> Outcome:
    queries = read_queries(queries_file)
    said = read_json(location(results) / RUN)["queries"]
    return Outcome(
        frame=read_proponents(location(results)),
        tail_patch=pl.read_parquet(results / TAIL_PATCH),
        queries=queries,
        frequencies=frequencies,
        is_right={query.id: said[query.id]["answer"].strip() == query.completion.strip() for query in queries},
    )


def markdown(outcome: Outcome, corpus: FactsCorpus, *, command: str) -> str:
    """The results as a page: all queries, then a table a metric over the groups, then paired differences."""
    whole = outcome.metrics()
    groups = outcome.groups()
    lines = [
        "# Fact tracing",
        "",
        f"`{command}` at {_commit()}, on {os.cpu_count()} cores of {platform.machine()}, Python "
        f"{platform.python_version()}.",
        "",
        f"{len(corpus.documents):,} sentences, {corpus.num_facts:,} facts, {len(corpus.queries)} of them queried. "
        f"The model answers {outcome.share_right():.0%} of the queries; by how often the fact is stated "
        + ", ".join(f"{group}: {outcome.share_right(group):.0%}" for group in groups if group in BUCKETS)
        + ". Means over queries with 95 % bootstrap intervals.",
        "",
        *_table("all queries", {name: whole.methods for name in SHOWN}, columns=SHOWN),
    ]
    by_group = {group: outcome.metrics(group) for group in groups}
    sizes = {group: f"{group} ({metrics.num_queries})" for group, metrics in by_group.items()}
    for metric in ("mrr", TAIL_PATCH_METRIC):
        lines += ["", f"## {metric} by how often the fact is stated, and by the model's answer (queries)", ""]
        cells = {sizes[group]: metrics.methods for group, metrics in by_group.items()}
        lines += _table("method", cells, columns=tuple(sizes.values()), metric=metric)
    lines += ["", f"## Method minus {whole.reference}, paired by query", ""]
    lines += _table("all queries", {name: whole.differences for name in SHOWN}, columns=SHOWN)
    return "\n".join([*lines, "", *_decoy_lines(outcome, corpus)]) + "\n"


def _decoy_lines(outcome: Outcome, corpus: FactsCorpus) -> list[str]:
    """What stands first, and the retrieval metrics of the rankings without their decoys."""
    counts = outcome.first_kinds(corpus)
    metrics = outcome.without_decoys().metrics()
    reference = f"mrr minus {metrics.reference}"
    cells = {"mrr": metrics.methods, "hit_at_10": metrics.methods, "recall_at_10": metrics.methods}
    differences = {name: {reference: found["mrr"]} for name, found in metrics.differences.items()}
    return [
        "## What stands first, in how many queries",
        "",
        f"| method | {' | '.join(FIRST_KINDS)} |",
        "|---" * (len(FIRST_KINDS) + 1) + "|",
        *(f"| {method} | {' | '.join(str(found[kind]) for kind in FIRST_KINDS)} |" for method, found in counts.items()),
        "",
        "## The same rankings with the decoys taken out",
        "",
        *_table("method", {**cells, reference: differences}, columns=(*cells, reference)),
    ]


def _table(
    corner: str, cells: Mapping[str, Mapping[str, Mapping[str, Estimate]]], *, columns: Sequence[str], metric: str = ""
) -> list[str]:
    """Methods by columns; a column is a metric, or a group at one metric."""
    methods = dict.fromkeys(name for column in columns for name in cells[column])
    rows = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method in methods:
        found = [cells[column].get(method, {}).get(metric or column) for column in columns]
        rows.append(f"| {method} | {' | '.join(map(_cell, found))} |")
    return rows


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})".replace("-", "−")


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/facts"), help="Everything is written below it.")
    parser.add_argument("--seed", type=int, default=0, help="Of the corpus and of the model.")
    parser.add_argument("--epochs", type=int, default=TRAINING.num_epochs)
    parser.add_argument("--methods", default=",".join(METHODS), help="Comma-separated; differences are to the first.")
    parser.add_argument("--results", type=Path, help="A file for the page, which is printed too.")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    corpus = build_facts_corpus(FactsConfig(seed=arguments.seed))
    corpus_file, queries_file = write_facts_corpus(corpus, out / "corpus")
    training = TRAINING.model_copy(update={"seed": arguments.seed, "num_epochs": arguments.epochs})
    trace_facts(str(corpus_file), str(queries_file), str(out), training, tuple(arguments.methods.split(",")))
    outcome = read_outcome(out / "results", queries_file, corpus.frequencies)
    command = f"python -m benchmarks.facts --seed {arguments.seed} --epochs {arguments.epochs}"
    page = markdown(outcome, corpus, command=command)
    publish(page, arguments.results)


def publish(page: str, target: Path | None) -> None:
    """Print the page, and keep it in a file if one is named."""
    print(page)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
