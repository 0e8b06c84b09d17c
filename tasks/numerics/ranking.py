"""The k best candidates of every query, kept while the corpus passes by.

    best(A ++ B) = best(best(A) ++ best(B))          associative, so shards merge in any grouping

Order decides ties: parts merged in corpus order leave equal scores in corpus order, however the corpus was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class Ranked:
    """The best candidates of every query, best first.

    Attributes:
        scores: [q k].
        positions: [q k], the candidates' places in the corpus.
    """

    scores: Float[ndarray, "q k"]
    positions: Int[ndarray, "q k"]


def best(scores: Float[ndarray, "q n"], positions: Int[ndarray, " n"], *, top_k: int | None, largest: bool) -> Ranked:
    """Return the ``top_k`` largest or smallest scores of every query, or all of them in order for None.

    Args:
        positions: Ascending.
    """
    return _select(scores, np.broadcast_to(positions, scores.shape), top_k=top_k, largest=largest)


def merge(parts: Sequence[Ranked], *, top_k: int | None, largest: bool) -> Ranked:
    """Return the best of all parts, which are given in corpus order."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    return _select(scores, positions, top_k=top_k, largest=largest)


def top_indices(scores: Float[ndarray, " n"], *, top_k: int, largest: bool) -> ndarray:
    """Return the indices of the ``top_k`` largest or smallest scores, best first; ties keep their order."""
    keys = -scores if largest else scores
    if top_k < len(keys):
        # everything at least as good as the k-th, so that ties are broken by order and not by the partition
        candidates = np.flatnonzero(keys <= np.partition(keys, top_k - 1)[top_k - 1])
    else:
        candidates = np.arange(len(keys))
    return candidates[np.argsort(keys[candidates], kind="stable")][:top_k]


def _select(scores: ndarray, positions: ndarray, *, top_k: int | None, largest: bool) -> Ranked:
    k = scores.shape[1] if top_k is None else top_k
    chosen = np.array([top_indices(row, top_k=k, largest=largest) for row in scores], dtype=np.int64)
    chosen = chosen.reshape(len(scores), min(k, scores.shape[1]))
    return Ranked(np.take_along_axis(scores, chosen, axis=1), np.take_along_axis(positions, chosen, axis=1))
