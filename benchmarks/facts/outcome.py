"""What came out of the fact-tracing benchmark: one run a seed, and the queries of all seeds as one set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from benchmarks.facts.corpus import BUCKETS, FactsCorpus, bucket_of
from trackstar.storage.layout import TAIL_PATCH, location
from trackstar.storage.queries import Query, read_queries
from trackstar.storage.results import PROPONENT, read_proponents, read_run
from trackstar.tasks.evaluation.metrics import Metrics, evaluate

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

    def first_kinds(self, corpus: FactsCorpus) -> dict[str, Counter[str]]:
        """Method to what the first proponents of its queries are, and how often."""
        kinds = {document.id: document.kind for document in corpus.documents}
        own = {(query.id, name) for query in self.queries for name in query.relevant_ids or ()}
        counts: dict[str, Counter[str]] = {}
        first = self.frame.filter((pl.col("kind") == PROPONENT) & (pl.col("rank") == 1))
        for query_id, method, candidate_id in first.select("query_id", "method", "candidate_id").iter_rows():
            kind = STATES if (query_id, candidate_id) in own else kinds[candidate_id]
            kind = OWN_DECOY if candidate_id.startswith(f"decoy/{query_id}/") else kind
            counts.setdefault(method, Counter())[kind] += 1
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


@dataclass(frozen=True)
class Run:
    """One seed: of the corpus, and of the model that was trained on it."""

    seed: int
    corpus: FactsCorpus
    outcome: Outcome


def read_outcome(results: Path, queries_file: Path, frequencies: Mapping[str, int]) -> Outcome:
    queries = read_queries(queries_file)
    said = read_run(location(results))["queries"]
    return Outcome(
        frame=read_proponents(location(results)),
        tail_patch=pl.read_parquet(results / TAIL_PATCH),
        queries=queries,
        frequencies=frequencies,
        is_right={query.id: said[query.id]["answer"].strip() == query.completion.strip() for query in queries},
    )


def pooled(runs: Sequence[Run]) -> Outcome:
    """The queries of all runs as one set, the seed in front of their ids: a fact may be asked about in several."""
    parts = [_named_by_seed(run.outcome, f"{run.seed}/") for run in runs]
    return Outcome(
        frame=pl.concat([part.frame for part in parts]),
        tail_patch=pl.concat([part.tail_patch for part in parts]),
        queries=[query for part in parts for query in part.queries],
        frequencies={name: value for part in parts for name, value in part.frequencies.items()},
        is_right={name: value for part in parts for name, value in part.is_right.items()},
    )


def pooled_first_kinds(runs: Iterable[Run]) -> dict[str, Counter[str]]:
    """``first_kinds``, added up over the runs."""
    total: dict[str, Counter[str]] = {}
    for run in runs:
        for method, counts in run.outcome.first_kinds(run.corpus).items():
            total.setdefault(method, Counter()).update(counts)
    return total


def _named_by_seed(outcome: Outcome, prefix: str) -> Outcome:
    query_id = pl.lit(prefix) + pl.col("query_id")
    return Outcome(
        frame=outcome.frame.with_columns(query_id=query_id),
        tail_patch=outcome.tail_patch.with_columns(query_id=query_id),
        queries=[query.model_copy(update={"id": prefix + query.id}) for query in outcome.queries],
        frequencies={prefix + name: value for name, value in outcome.frequencies.items()},
        is_right={prefix + name: value for name, value in outcome.is_right.items()},
    )
