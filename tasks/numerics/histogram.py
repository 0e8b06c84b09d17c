"""How the scores of all candidates are spread: counts that add up over shards.

counts(A ++ B) = counts(A) + counts(B)          over bins that are fixed beforehand
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def bin_counts(
    scores: Float[ndarray, "n q"], low: Float[ndarray, " q"], high: Float[ndarray, " q"], *, num_bins: int
) -> Int[ndarray, "q bins"]:
    """Return, per query, how many scores lie in each of ``num_bins`` equal bins of [low, high].

    A score beyond an end by rounding counts in the bin at that end; where low is high all are in the first bin.
    """
    width = np.where(high > low, high - low, 1.0)
    bins = np.clip(np.floor((scores - low) / width * num_bins), 0, num_bins - 1).astype(np.int64)
    num_queries = scores.shape[1]
    flat = bins + num_bins * np.arange(num_queries)
    return np.bincount(flat.ravel(), minlength=num_queries * num_bins).reshape(num_queries, num_bins)


def share_below(counts: Sequence[int], score: float, *, low: float, high: float) -> float:
    """Return the share of all scores that lie in bins below that of this one: at least so many are lower."""
    width = high - low if high > low else 1.0
    position = min(max(int((score - low) / width * len(counts)), 0), len(counts) - 1)
    return sum(counts[:position]) / sum(counts)


def upper_edge(counts: Sequence[int], share: float, *, low: float, high: float) -> float:
    """Return the lowest upper edge of a bin that at least this share of all scores does not exceed."""
    total = 0
    for number, count in enumerate(counts, start=1):
        total += count
        if total >= share * sum(counts):
            return low + (high - low) * number / len(counts)
    return high
