"""Methods that rank candidates without the model, in the same result table as those that need it."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA, QueryLike
from tasks.numerics.bm25 import Bm25

SCORES_AT_ONCE = 1 << 24  # float64 scores held together: 128 MiB


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
