"""All scores of every query as a histogram, and the scores of its evidence however low: one more pass over the store.

A ranking keeps the ends of the distribution; what lies between them tells how far from the rest a proponent is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from trackstar.storage.layout import (
    DOCUMENTS,
    EVIDENCE_SCORES,
    HISTOGRAM,
    QUERIES,
    QUERY_VECTORS,
    RANKING,
)
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays
from trackstar.storage.queries import Query
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.numerics.histogram import bin_counts
from trackstar.tasks.numerics.scores import QueryBasis
from trackstar.tasks.runtime.dask import compute, part, tree_merge
from trackstar.tasks.runtime.stage import stage
from trackstar.tasks.scoring.score_pass import Pass, ScoreConfig, query_bases, shard_influences
from trackstar.tasks.scoring.whitening import TrainWhitening

NUM_BINS = 40
EVIDENCE_SCHEMA = {"query_id": pl.String, "candidate_id": pl.String, "score": pl.Float64}


class HistogramRequest(IndexedShards):
    """A gradient method's scores to be counted between the highest and the lowest of its ranking."""

    kind: ClassVar[str] = "histograms"
    version: ClassVar[int] = 1

    queries: Artifact
    ranking: Artifact
    config: ScoreConfig
    evidence: dict[str, tuple[str, ...]]  # query id to candidate ids

    @property
    def label(self) -> str:
        return f"distribution of {self.ranking.facts['method']} scores"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "queries": self.queries.digest,
            "ranking": self.ranking.digest,
            "evidence": self.evidence,
            "num_bins": NUM_BINS,
        }


class _Counted(NamedTuple):
    counts: ndarray  # [q bins]
    evidence: dict[tuple[int, str], float]  # query number and candidate id to score


class _Counting(NamedTuple):
    """What is counted in every shard."""

    low: ndarray
    high: ndarray
    evidence: Mapping[str, Sequence[int]]  # candidate id to the numbers of its queries


def histogram_request(
    index: Index, encoded: Artifact, ranking: Artifact, score: ScoreConfig, queries: Sequence[Query]
) -> HistogramRequest:
    """What it takes to count the scores behind a ranking that was made with these settings."""
    return HistogramRequest(
        index=str(index.path),
        shards=index.shards,
        tombstones=index.tombstones,
        queries=encoded,
        ranking=ranking,
        config=score,
        evidence={query.id: query.relevant_ids for query in queries if query.relevant_ids},
    )


@stage
def count_scores(request: HistogramRequest, draft: Draft) -> None:
    """Write query_id, low, high, counts; and query_id, candidate_id, score of the evidence."""
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"].to_list()
    facts = request.ranking.facts
    whitening = TrainWhitening.of_ranking(facts, request.index)
    query_vectors = read_arrays(request.queries.path(request.index), QUERY_VECTORS, order=request.block_dims)
    bases = query_bases(request, whitening, query_vectors)
    common = Pass(whitening, (facts["mixing_weight"],), request.config)
    counting = _counting(request, query_ids)
    candidates = Candidates(request.shards, request.index, request.tombstones)
    parts = [
        part(_count_shard, path, common, bases, counting, candidates.withdrawn.get(path)) for path in candidates.paths
    ]
    (counted,) = compute([tree_merge(parts, _merge)], where=request.dask)
    ends = {"query_id": query_ids, "low": counting.low, "high": counting.high}
    write_table(draft.path / HISTOGRAM, pl.DataFrame({**ends, "counts": counted.counts.tolist()}))
    rows = [(query_ids[query], candidate, score) for (query, candidate), score in sorted(counted.evidence.items())]
    write_table(draft.path / EVIDENCE_SCORES, pl.DataFrame(rows, schema=EVIDENCE_SCHEMA, orient="row"))
    draft.facts |= {"method": facts["method"], "num_bins": NUM_BINS, "num_candidates": facts["num_candidates"]}


def _counting(request: HistogramRequest, query_ids: Sequence[str]) -> _Counting:
    """Bins reach from a query's first opponent to its first proponent."""
    method = request.ranking.facts["method"]  # a sweep of λ has others beside it
    ranked = read_table(request.ranking.path(request.index), RANKING)
    first = ranked.filter((pl.col("method") == method) & (pl.col("rank") == 1))
    ends = {
        kind: dict(first.filter(pl.col("kind") == kind).select("query_id", "score").iter_rows())
        for kind in (OPPONENT, PROPONENT)
    }
    evidence: dict[str, list[int]] = {}
    for number, query_id in enumerate(query_ids):
        for candidate_id in request.evidence.get(query_id, ()):
            evidence.setdefault(candidate_id, []).append(number)
    return _Counting(
        low=np.array([ends[OPPONENT][query_id] for query_id in query_ids]),
        high=np.array([ends[PROPONENT][query_id] for query_id in query_ids]),
        evidence=evidence,
    )


def _count_shard(
    path: UPath,
    common: Pass,
    bases: Mapping[str, QueryBasis],
    counting: _Counting,
    withdrawn: ndarray | None,
) -> _Counted:
    ids = read_table(path, DOCUMENTS)["id"]
    parts = []
    for rows, (influence,) in shard_influences(path, common, bases, withdrawn):
        evidence = {
            (query, candidate_id): float(influence[row, query])
            for row, candidate_id in enumerate(ids.gather(rows))
            for query in counting.evidence.get(candidate_id, ())
        }
        parts.append(_Counted(bin_counts(influence, counting.low, counting.high, num_bins=NUM_BINS), evidence))
    return _merge(parts)


def _merge(parts: Sequence[_Counted]) -> _Counted:
    evidence: dict[tuple[int, str], float] = {}
    for counted in parts:
        evidence |= counted.evidence
    return _Counted(np.sum([counted.counts for counted in parts], axis=0), evidence)
