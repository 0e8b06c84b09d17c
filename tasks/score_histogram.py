"""All scores of every query as a histogram, and the scores of its evidence however low: one more pass over the store.

A ranking keeps the ends of the distribution; what lies between them tells how far from the rest a proponent is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from storage.layout import DOCUMENTS, EVIDENCE_SCORES, HISTOGRAM, QUERIES, QUERY_VECTORS, RANKING
from storage.manifest import Artifact, Draft
from storage.matrices import read_arrays
from storage.results import OPPONENT, PROPONENT
from storage.tables import read_table, write_table
from tasks.dask_compute import compute, part, tree_merge
from tasks.numerics import scores
from tasks.numerics.histogram import bin_counts
from tasks.scores import Pass, ScoreRequest, shard_influences
from tasks.stage import StageRequest, stage
from tasks.whitening import read_factor

NUM_BINS = 40
EVIDENCE_SCHEMA = {"query_id": pl.String, "candidate_id": pl.String, "score": pl.Float64}


class HistogramRequest(StageRequest):
    """A gradient method's scores to be counted between the highest and the lowest of its ranking.

    Attributes:
        scoring: What the ranking was made from.
        evidence: Query id to candidate ids.
    """

    kind: ClassVar[str] = "histograms"
    version: ClassVar[int] = 1

    scoring: ScoreRequest
    ranking: Artifact
    evidence: dict[str, tuple[str, ...]]

    @property
    def label(self) -> str:
        return f"distribution of {self.scoring.method} scores"

    def inputs(self) -> dict[str, Any]:
        return {
            "scoring": self.scoring.identity(),
            "mixing_weight": self.ranking.facts["mixing_weight"],
            "ranking": self.ranking.digest,
            "evidence": self.evidence,
            "num_bins": NUM_BINS,
        }


class _Counted(NamedTuple):
    counts: ndarray  # [q bins]
    evidence: dict[tuple[int, str], float]  # query number and candidate id to score


class _Bins(NamedTuple):
    """From where to where the scores of each query are counted, and whose scores are wanted themselves."""

    low: ndarray
    high: ndarray
    evidence: Mapping[str, Sequence[int]]  # candidate id to the numbers of its queries


@stage
def count_scores(request: HistogramRequest, draft: Draft) -> None:
    """Write query_id, low, high, counts; and query_id, candidate_id, score of the evidence."""
    scoring = request.scoring
    query_ids = read_table(scoring.queries.path(request.index), QUERIES)["query_id"].to_list()
    vectors = read_arrays(scoring.queries.path(request.index), QUERY_VECTORS)
    factors = scoring.factors and scoring.factors.path(request.index)
    bases = {block: part(_basis, factors, block, vectors[block]) for block in scoring.block_dims}
    weights = (request.ranking.facts["mixing_weight"],)
    common = Pass(scoring.train_norms.path(request.index), weights, scoring.config)
    bins, withdrawn = _bins(request, query_ids), scoring.withdrawn()
    parts = [
        part(_count_shard, path, common, bases, bins, withdrawn.get(path))
        for path, shard in zip(scoring.shard_paths, scoring.shards, strict=True)
        if shard.facts["num_documents"]
    ]
    (counted,) = compute([tree_merge(parts, _merge)], where=scoring.dask)
    ends = {"query_id": query_ids, "low": bins.low, "high": bins.high}
    write_table(draft.path / HISTOGRAM, pl.DataFrame({**ends, "counts": counted.counts.tolist()}))
    rows = [(query_ids[query], candidate, score) for (query, candidate), score in sorted(counted.evidence.items())]
    write_table(draft.path / EVIDENCE_SCORES, pl.DataFrame(rows, schema=EVIDENCE_SCHEMA, orient="row"))
    draft.facts |= {"method": scoring.method, "num_bins": NUM_BINS}


def _bins(request: HistogramRequest, query_ids: Sequence[str]) -> _Bins:
    """Bins reach from a query's first opponent to its first proponent."""
    first = read_table(request.ranking.path(request.index), RANKING).filter(
        (pl.col("rank") == 1) & (pl.col("method") == request.scoring.method)
    )
    ends = {
        kind: dict(first.filter(pl.col("kind") == kind).select("query_id", "score").iter_rows())
        for kind in (OPPONENT, PROPONENT)
    }
    evidence: dict[str, list[int]] = {}
    for number, query_id in enumerate(query_ids):
        for candidate_id in request.evidence.get(query_id, ()):
            evidence.setdefault(candidate_id, []).append(number)
    low, high = (np.array([ends[kind][query_id] for query_id in query_ids]) for kind in (OPPONENT, PROPONENT))
    return _Bins(low, high, evidence)


def _basis(factors: UPath | None, block: str, query_vectors: ndarray) -> scores.QueryBasis:
    return scores.query_basis(read_factor(factors, block), query_vectors)


def _count_shard(
    path: UPath, common: Pass, bases: Mapping[str, scores.QueryBasis], bins: _Bins, withdrawn: ndarray | None
) -> _Counted:
    ids = read_table(path, DOCUMENTS)["id"].to_list()
    kept = np.ones(len(ids), dtype=bool)
    if withdrawn is not None:
        kept[withdrawn] = False
    parts = []
    for start, (influence,) in shard_influences(path, common, bases):
        rows = np.flatnonzero(kept[start : start + len(influence)])
        evidence = {
            (query, ids[start + row]): float(influence[row, query])
            for row in rows
            for query in bins.evidence.get(ids[start + row], ())
        }
        parts.append(_Counted(bin_counts(influence[rows], bins.low, bins.high, num_bins=NUM_BINS), evidence))
    return _merge(parts)


def _merge(parts: Sequence[_Counted]) -> _Counted:
    evidence: dict[tuple[int, str], float] = {}
    for counted in parts:
        evidence |= counted.evidence
    return _Counted(np.sum([counted.counts for counted in parts], axis=0), evidence)
