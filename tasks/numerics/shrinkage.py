"""Which scores stand out from the rest, and what is left of a score when the rest is taken off.

    c       score − median over all documents
    σ       1.4826 · median |c|: the standard deviation, where scores are normal and few stand out
    score'  sign(c) · max(|c| − z σ, 0)

Where more than half of the documents have one and the same score, σ = 0: whatever differs from it stands out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

NORMAL = 1.4826  # the standard deviation of a normal distribution in median absolute deviations


class Spread(NamedTuple):
    """Median and σ of the scores of every mixing weight and query, and how many stand out."""

    median: Float[ndarray, "l q"]
    deviation: Float[ndarray, "l q"]
    stands_out: Int[ndarray, "l q"]


def spread(scores: Float[ndarray, "l q n"], *, z: float) -> Spread:
    """Return the spread of all documents' scores, which are overwritten: they may fill the memory."""
    median = np.median(scores, axis=-1)
    scores -= median[..., None]
    np.abs(scores, out=scores)
    deviation = NORMAL * np.median(scores, axis=-1).astype(np.float64)
    stands_out = np.count_nonzero(scores > z * deviation[..., None], axis=-1)
    return Spread(median.astype(np.float64), deviation, stands_out)


def soft_threshold(scores: Float[ndarray, "l n q"], spread: Spread, *, z: float) -> Float[ndarray, "l n q"]:
    """Return score' of some documents."""
    c = scores - spread.median[:, None]
    return np.sign(c) * np.maximum(np.abs(c) - z * spread.deviation[:, None], 0.0)
