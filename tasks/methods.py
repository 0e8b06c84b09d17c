"""Every method by its name: TrackStar, what is left of it without one term, and what needs no gradient at all."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl

from storage.errors import InputError
from storage.layout import RANKING
from storage.manifest import Artifact, Draft
from storage.queries import Query
from storage.tables import write_table
from tasks.attribution import rank
from tasks.baselines import bm25, result_rows
from tasks.curvature import IndexedShards
from tasks.index import Index, shard_texts
from tasks.scores import ScoreConfig
from tasks.stage import stage

TRACKSTAR = "trackstar"

# What a gradient method changes in TrackStar's settings.
GRADIENT_METHODS: dict[str, dict[str, Any]] = {
    TRACKSTAR: {},
    "train_only": {"whitening": "train"},
    "no_whitening": {"whitening": "none"},
    "no_unit_norm": {"unit_norm": False},
}
BM25 = "bm25"
RANDOM = "random"
METHODS = (*GRADIENT_METHODS, BM25, RANDOM)
DEFAULT_METHODS = (TRACKSTAR, BM25)


class BaselineRequest(IndexedShards):
    """A query set to be ranked by the documents' texts, or by chance."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 1

    method: str
    queries: tuple[Query, ...]
    top_k: int
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.method} scores of {len(self.queries)} queries"

    def inputs(self) -> dict[str, Any]:
        asked = [query.model_dump(mode="json", include={"id", "prompt", "completion"}) for query in self.queries]
        return {**super().inputs(), "method": self.method, "queries": asked, "top_k": self.top_k, "seed": self.seed}


@stage
def rank_by_baseline(request: BaselineRequest, draft: Draft) -> None:
    """Write each query's ranking by BM25 or by chance."""
    texts = shard_texts(request.shard_paths, without=request.withdrawn_ids())
    if request.method == BM25:
        ranking = bm25(texts, request.queries, k=request.top_k)
    else:
        ranking = _random_ranking(request, list(texts))
    write_table(draft.path / RANKING, ranking)
    draft.facts |= {"method": request.method, "num_candidates": len(texts)}


def rank_by(
    method: str, index: Index, queries: Sequence[Query], encoded: Artifact, *, config: ScoreConfig, dask: str
) -> Artifact:
    """The ranking of a query set by the method of this name."""
    if method in GRADIENT_METHODS:
        changed = ScoreConfig.model_validate({**config.model_dump(), **GRADIENT_METHODS[method]})
        return rank(index, encoded, changed, method=method, dask=dask)
    return rank_by_baseline(
        BaselineRequest(
            index=str(index.path),
            shards=index.shards,
            method=method,
            queries=tuple(queries),
            top_k=config.top_k,
            tombstones=index.tombstones,
        )
    )


def require_known(methods: Sequence[str]) -> None:
    """Raise InputError for a method there is none of, or one that is named twice."""
    for position, method in enumerate(methods):
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}; choose among {', '.join(METHODS)}")
        if method in methods[:position]:
            raise InputError(f"method {method!r} is named twice; name each once")


def _random_ranking(request: BaselineRequest, ids: Sequence[str]) -> pl.DataFrame:
    scores = np.random.default_rng(request.seed).random((len(request.queries), len(ids)))
    query_ids = [query.id for query in request.queries]
    return result_rows(scores, method=RANDOM, query_ids=query_ids, candidate_ids=ids, k=request.top_k)
