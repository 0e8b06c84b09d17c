"""Scores that admit that most documents do not matter: what does not stand out from a query's other scores is zero.

All scores of a query are held at once, in float32 (4 bytes a document), and of as many queries as fit into
``BYTES_AT_ONCE``; more queries take another pass over the store. Medians are exact so, to the rounding of float32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from dask.delayed import Delayed
from numpy import ndarray
from upath import UPath

from trackstar.storage.layout import QUERIES, RANKING, SHRINKAGE
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.numerics.scores import QueryBasis
from trackstar.tasks.numerics.shrinkage import Spread, soft_threshold, spread
from trackstar.tasks.runtime.dask import compute, part
from trackstar.tasks.runtime.stage import StageRequest, stage
from trackstar.tasks.scoring.score_pass import (
    Pass,
    ScoreRequest,
    pass_of,
    query_bases,
    read_query_vectors,
    shard_influences,
)

BYTES_AT_ONCE = 1 << 29

PartsOf = Callable[[slice], list[Delayed]]  # float32 scores [weights q n] of each shard, of some queries


class ShrinkRequest(StageRequest):
    """A ranking whose scores are to be shrunk; its order stays.

    Attributes:
        scored: What the ranking was made of.
    """

    kind: ClassVar[str] = "shrunk"
    version: ClassVar[int] = 1

    scored: ScoreRequest
    ranking: Artifact

    @property
    def label(self) -> str:
        return f"what stands out for {self.scored.queries.facts['num_queries']} queries"

    def inputs(self) -> dict[str, Any]:
        return {"ranking": self.ranking.digest, "z": self.scored.config.shrink}


@stage
def shrink_ranking(request: ShrinkRequest, draft: Draft) -> None:
    """Write the ranking with its scores shrunk, and how many documents stand out for every query."""
    found = request_spread(request.scored, request.ranking.facts["mixing_weights"])
    ranking = read_table(request.ranking.path(request.index), RANKING)
    draft.facts |= request.ranking.facts
    write_shrunk(draft, ranking, found, query_ids=query_ids(request.scored), z=request.scored.config.shrink)


def write_shrunk(draft: Draft, ranking: pl.DataFrame, found: Spread, *, query_ids: Sequence[str], z: float) -> None:
    """Write a ranking with its scores shrunk; the draft's facts say its methods, and then what stands out."""
    methods = list(draft.facts["mixing_weights"])
    places = {"method": np.repeat(methods, len(query_ids)), "query_id": list(query_ids) * len(methods)}
    table = pl.DataFrame({**places, **{name: values.ravel() for name, values in found._asdict().items()}})
    write_table(draft.path / SHRINKAGE, table)
    write_table(draft.path / RANKING, _shrunk(ranking, table, z))
    draft.facts |= {"shrink": z, "stands_out": dict(zip(query_ids, found.stands_out[0].tolist(), strict=True))}


def request_spread(request: ScoreRequest, weights: Mapping[str, float]) -> Spread:
    """The spread of the scores of every document that was not withdrawn."""
    bases = query_bases(request, request.train_whitening, read_query_vectors(request))
    common = pass_of(request, weights)
    candidates = Candidates(request.shards, request.index, request.tombstones)

    def parts_of(queries: slice) -> list[Delayed]:
        shards = [(path, candidates.withdrawn.get(path)) for path in candidates.paths]
        return [part(_shard_scores, path, common, bases, withdrawn, queries) for path, withdrawn in shards]

    num_scores = len(weights) * candidates.num_live
    num_queries, z = request.queries.facts["num_queries"], request.config.shrink
    return measure(parts_of, num_queries=num_queries, num_scores=num_scores, z=z, where=request.dask)


def measure(parts_of: PartsOf, *, num_queries: int, num_scores: int, z: float, where: str) -> Spread:
    """The spread of all scores, of as many queries in one pass as memory allows.

    Args:
        num_scores: Of one query.
    """
    at_once = max(1, BYTES_AT_ONCE // (4 * max(1, num_scores)))
    spreads = []
    for start in range(0, num_queries, at_once):
        parts = compute(parts_of(slice(start, start + at_once)), where=where)
        spreads.append(spread(np.concatenate(parts, axis=2), z=z))
    return Spread(*(np.concatenate(values, axis=1) for values in zip(*spreads, strict=True)))


def shrunk(scores: ndarray, found: Spread | None, config: Any) -> ndarray:
    """Scores [weights n q] as the configuration asks for them."""
    return scores if found is None else soft_threshold(scores, found, z=config.shrink)


def query_ids(request: ScoreRequest) -> list[str]:
    return read_table(request.queries.path(request.index), QUERIES)["query_id"].to_list()


def _shard_scores(
    path: UPath, common: Pass, bases: Mapping[str, QueryBasis], withdrawn: ndarray | None, queries: slice
) -> ndarray:
    found = [scores[:, :, queries] for _, scores in shard_influences(path, common, bases, withdrawn)]
    return np.concatenate(found, axis=1).transpose(0, 2, 1).astype(np.float32)


def _shrunk(ranking: pl.DataFrame, spreads: pl.DataFrame, z: float) -> pl.DataFrame:
    c = pl.col("score") - pl.col("median")
    score = c.sign() * (c.abs() - z * pl.col("deviation")).clip(lower_bound=0.0)
    joined = ranking.join(spreads, on=["method", "query_id"], how="left", maintain_order="left")
    return joined.with_columns(score=score).select(ranking.columns)
