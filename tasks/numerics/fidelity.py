"""What a store's rounding does to scores: each document of a sample asked for as if it were a query.

    φ  [n d]  vectors as they were computed       φ'  the same as they are stored
    s         mean of φ_i² in one block
    score(q, m) = ⟨φ_q/√s, φ_m/√s⟩ / norms, over all blocks, with φ'_m in place of φ_m after rounding

Nothing is whitened but that blocks weigh the same: what R does to rounding errors is not in it.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def fidelity(
    exact: Mapping[str, Float[ndarray, "n _"]], stored: Mapping[str, Float[ndarray, "n _"]], *, top_k: int
) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
    """Return, for each document as a query, the share of its best others that stay, and the correlation of its scores.

    Args:
        exact: By block.
        stored: By block.
        top_k: How many of the best are compared, at most all others.

    Raises:
        ValueError: There are fewer than three documents, so that no query has two others to be correlated over.
    """
    num_rows = len(next(iter(exact.values())))
    if num_rows < 3:
        raise ValueError(f"{num_rows} documents are no sample; take at least three")
    others = ~np.eye(num_rows, dtype=bool)
    before, after = (
        scores[others].reshape(num_rows, num_rows - 1) for scores in (_scores(exact, exact), _scores(exact, stored))
    )
    top_k = min(top_k, num_rows - 1)
    best, kept = (np.argsort(-scores, axis=1, kind="stable")[:, :top_k] for scores in (before, after))
    overlaps = np.array([len(np.intersect1d(*pair)) / top_k for pair in zip(best, kept, strict=True)])
    return overlaps, _correlations(before, after)


def _scores(queries: Mapping[str, ndarray], documents: Mapping[str, ndarray]) -> Float[ndarray, "n n"]:
    products, query_norms, norms = 0.0, 0.0, 0.0
    for block, phi in documents.items():
        q, m = queries[block].astype(np.float64), phi.astype(np.float64)
        s = np.mean(q**2) or 1.0
        products = products + q @ m.T / s
        query_norms, norms = query_norms + np.sum(q**2, axis=1) / s, norms + np.sum(m**2, axis=1) / s
    return products / np.sqrt(np.outer(query_norms, np.where(norms > 0, norms, 1.0)))


def _correlations(before: Float[ndarray, "n o"], after: Float[ndarray, "n o"]) -> Float[ndarray, " n"]:
    """Pearson's, row by row; 1 where all scores of a row are the same before and after."""
    x, y = (scores - scores.mean(axis=1, keepdims=True) for scores in (before, after))
    norms = np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1))
    same = np.all(before == after, axis=1)
    return np.where(same, 1.0, np.sum(x * y, axis=1) / np.where(norms > 0, norms, 1.0))
