"""Methods that rank candidates without the model, in the same result table as those that need it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl

from storage.layout import RANKING
from storage.manifest import Draft
from storage.queries import Query, asked
from storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA, QueryLike
from storage.tables import write_table
from tasks.curvature import IndexedShards
from tasks.index import shard_texts
from tasks.numerics.bm25 import Bm25
from tasks.stage import stage

BM25, RANDOM = "bm25", "random"
SCORES_AT_ONCE = 1 << 24  # float64 scores held together: 128 MiB


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
        settings = {"method": self.method, "top_k": self.top_k, "seed": self.seed}
        return {**super().inputs(), "queries": asked(self.queries), **settings}


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


def _random_ranking(request: BaselineRequest, ids: Sequence[str]) -> pl.DataFrame:
    scores = np.random.default_rng(request.seed).random((len(request.queries), len(ids)))
    query_ids = [query.id for query in request.queries]
    return result_rows(scores, method=RANDOM, query_ids=query_ids, candidate_ids=ids, k=request.top_k)


def search_text(query: QueryLike) -> str:
    """What a query is searched by: its prompt and its completion."""
    return f"{query.prompt} {query.completion}"


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """[q n] BM25 score of every document for every query text."""
    return Bm25(documents).scores(queries)


def bm25(documents: Mapping[str, str], queries: Sequence[QueryLike], *, k: int, method: str = "bm25") -> pl.DataFrame:
    """The result table of BM25: the k best documents of each query.

    It holds no opponents: a lexical score of 0 is the absence of shared words, which speaks against nothing.

    Args:
        documents: Text by id, in corpus order.
        k: How many to keep; 0 keeps all.
    """
    index, ids = Bm25(list(documents.values())), list(documents)
    step = max(1, SCORES_AT_ONCE // max(1, len(ids)))
    tables = [RESULT_SCHEMA.to_frame()]
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        scores = index.scores([search_text(query) for query in part])
        table = result_rows(scores, method=method, query_ids=[query.id for query in part], candidate_ids=ids, k=k)
        tables.append(table.filter(pl.col("kind") == PROPONENT))
    return pl.concat(tables)


def result_rows(
    scores: np.ndarray, *, method: str, query_ids: Sequence[str], candidate_ids: Sequence[str], k: int
) -> pl.DataFrame:
    """The result table of one method, proponents and opponents, from the [q n] scores of all candidates."""
    ids = pl.Series("candidate_id", candidate_ids, dtype=pl.String)
    tables = [RESULT_SCHEMA.to_frame()]
    for query_id, row in zip(query_ids, scores, strict=True):
        for kind, chosen in zip((PROPONENT, OPPONENT), top_and_bottom(row, k=k), strict=True):
            ranked = pl.DataFrame({"candidate_id": ids.gather(chosen), "score": row[chosen]}).with_columns(
                query_id=pl.lit(query_id),
                method=pl.lit(method),
                kind=pl.lit(kind),
                rank=pl.int_range(1, pl.len() + 1),
            )
            tables.append(ranked.select(RESULT_SCHEMA.names()).cast(dict(RESULT_SCHEMA)))
    return pl.concat(tables)


def top_and_bottom(scores: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the k highest of n scores, highest first, and of the k lowest, lowest first; ties in corpus order.

    ``k = 0`` means all, and so does a k beyond n.

    Raises:
        ValueError: A score is not finite, and so has no place in an order.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"score {scores[~np.isfinite(scores)][0]} has no place in an order; quarantine its document")
    return _highest(scores, k=k), _highest(-scores, k=k)


def _highest(scores: np.ndarray, *, k: int) -> np.ndarray:
    if not 0 < k < len(scores):
        return np.argsort(-scores, kind="stable")
    threshold = np.partition(scores, -k)[-k]
    contenders = np.flatnonzero(scores >= threshold)  # in corpus order, which the stable sort keeps among equals
    return contenders[np.argsort(-scores[contenders], kind="stable")[:k]]
