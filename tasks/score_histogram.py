"""All scores of every query as a histogram, and the scores of its evidence however low: one more pass over the store.

A ranking keeps the ends of the distribution; what lies between them tells how far from the rest a proponent is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from storage.gradients import GradientReader
from storage.layout import DOCUMENTS, EVIDENCE_SCORES, HISTOGRAM, QUERIES, QUERY_VECTORS, RANKING, TRAIN_NORMS, location
from storage.manifest import Artifact, Draft
from storage.matrices import read_arrays
from storage.queries import Query
from storage.results import OPPONENT, PROPONENT
from storage.tables import read_table, write_table
from tasks.curvature import ROWS_AT_ONCE, IndexedShards, block_factor
from tasks.dask_compute import compute, part, tree_merge
from tasks.index import Index
from tasks.numerics import scores
from tasks.numerics.histogram import bin_counts
from tasks.scores import ScoreConfig
from tasks.stage import stage

NUM_BINS = 40
EVIDENCE_SCHEMA = {"query_id": pl.String, "candidate_id": pl.String, "score": pl.Float64}


class HistogramRequest(IndexedShards):
    """A gradient method's scores to be counted between the highest and the lowest of its ranking."""

    kind: ClassVar[str] = "histograms"
    version: ClassVar[int] = 1

    queries: Artifact
    ranking: Artifact
    autocorrelation: Artifact | None
    unit_norm: bool
    evidence: dict[str, tuple[str, ...]]  # query id to candidate ids

    @property
    def label(self) -> str:
        return f"distribution of {self.ranking.facts['method']} scores"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "queries": self.queries.digest,
            "ranking": self.ranking.digest,
            **{name: self.ranking.facts[name] for name in ("mixing_weight", "damping", "whitening")},
            "unit_norm": self.unit_norm,
            "evidence": self.evidence,
            "num_bins": NUM_BINS,
        }


class _Counted(NamedTuple):
    counts: ndarray  # [q bins]
    evidence: dict[tuple[int, str], float]  # query number and candidate id to score


class _Scoring(NamedTuple):
    """What every shard is scored with."""

    mixing_weight: float
    unit_norm: bool
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
        queries=encoded,
        ranking=ranking,
        autocorrelation=index.autocorrelation if score.whitening != "none" else None,
        unit_norm=score.unit_norm,
        evidence={query.id: query.relevant_ids for query in queries if query.relevant_ids},
    )


@stage
def count_scores(request: HistogramRequest, draft: Draft) -> None:
    """Write query_id, low, high, counts; and query_id, candidate_id, score of the evidence."""
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"].to_list()
    vectors = read_arrays(request.queries.path(request.index), QUERY_VECTORS)
    directory = request.autocorrelation and request.autocorrelation.path(request.index)
    bases = {
        block: part(_basis, directory, block, request.ranking.facts["damping"], vectors[block])
        for block in request.block_dims
    }
    scoring = _scoring(request, query_ids)
    norms = read_arrays(location(request.index) / request.ranking.facts["train_norms"], TRAIN_NORMS)
    parts, start = [], 0
    for path, shard in zip(request.shard_paths, request.shards, strict=True):
        stop = start + shard.facts["num_documents"]
        if stop > start:
            shard_norms = {block: values[start:stop] for block, values in norms.items()}
            parts.append(part(_count_shard, path, shard_norms, bases, scoring))
        start = stop
    (counted,) = compute([tree_merge(parts, _merge)], where=request.dask)
    ends = {"query_id": query_ids, "low": scoring.low, "high": scoring.high}
    write_table(draft.path / HISTOGRAM, pl.DataFrame({**ends, "counts": counted.counts.tolist()}))
    rows = [(query_ids[query], candidate, score) for (query, candidate), score in sorted(counted.evidence.items())]
    write_table(draft.path / EVIDENCE_SCORES, pl.DataFrame(rows, schema=EVIDENCE_SCHEMA, orient="row"))
    draft.facts |= {"method": request.ranking.facts["method"], "num_bins": NUM_BINS, "num_candidates": start}


def _scoring(request: HistogramRequest, query_ids: Sequence[str]) -> _Scoring:
    """Bins reach from a query's first opponent to its first proponent."""
    first = read_table(request.ranking.path(request.index), RANKING).filter(pl.col("rank") == 1)
    ends = {
        kind: dict(first.filter(pl.col("kind") == kind).select("query_id", "score").iter_rows())
        for kind in (OPPONENT, PROPONENT)
    }
    evidence: dict[str, list[int]] = {}
    for number, query_id in enumerate(query_ids):
        for candidate_id in request.evidence.get(query_id, ()):
            evidence.setdefault(candidate_id, []).append(number)
    return _Scoring(
        mixing_weight=request.ranking.facts["mixing_weight"],
        unit_norm=request.unit_norm,
        low=np.array([ends[OPPONENT][query_id] for query_id in query_ids]),
        high=np.array([ends[PROPONENT][query_id] for query_id in query_ids]),
        evidence=evidence,
    )


def _basis(autocorrelation: UPath | None, block: str, damping: float, query_vectors: ndarray) -> scores.QueryBasis:
    return scores.query_basis(block_factor(autocorrelation, block, damping), query_vectors)


def _count_shard(
    path: UPath, norms: Mapping[str, ndarray], bases: Mapping[str, scores.QueryBasis], scoring: _Scoring
) -> _Counted:
    reader, ids = GradientReader(path), read_table(path, DOCUMENTS)["id"]
    parts = []
    for start in range(0, reader.num_rows, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, reader.num_rows)
        influence = scores.influence(
            [reader.rows(block, start, stop).astype(np.float64) @ basis.readout for block, basis in bases.items()],
            np.stack([norms[block][start:stop] for block in bases], axis=1),
            list(bases.values()),
            mixing_weight=scoring.mixing_weight,
            unit_norm=scoring.unit_norm,
        )
        evidence = {
            (query, candidate_id): float(influence[row, query])
            for row, candidate_id in enumerate(ids[start:stop])
            for query in scoring.evidence.get(candidate_id, ())
        }
        parts.append(_Counted(bin_counts(influence, scoring.low, scoring.high, num_bins=NUM_BINS), evidence))
    return _merge(parts)


def _merge(parts: Sequence[_Counted]) -> _Counted:
    evidence: dict[tuple[int, str], float] = {}
    for counted in parts:
        evidence |= counted.evidence
    return _Counted(np.sum([counted.counts for counted in parts], axis=0), evidence)
