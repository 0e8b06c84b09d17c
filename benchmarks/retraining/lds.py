"""The linear datamodelling score: whether scores predict what retraining on part of the corpus does to an answer.

    τ  [n q]    score of every candidate for every query
    S  [s n]    subsets of the candidates, one row each, 1 where a candidate is in
    f  [s q]    model output (log-probability of the answer) after training on each subset
    f̂  [s q]    S τ, the additive prediction

    LDS(q) = Spearman(f̂_q, f_q) over the s subsets            (Park et al. 2023, Definition 2.3)

Training with another seed changes f too, so no score can predict it perfectly. With f_a, f_b from two seeds, the
agreement r = Spearman(f_a, f_b) says how much of f the subset decides; outputs averaged over k seeds repeat to
r_k = k r / (1 + (k-1) r) (Spearman-Brown), and a perfect predictor correlates with them at about √r_k: the ceiling.

f̂ is a sum over members, and f need not be. Written with ±1 for in and out, a complement flips every sign: terms of odd
order change theirs, the sums among them, and terms of even order do not. So with S' the complement of S

    Σ_q cov(f_a(S), f_b(S)) = odd + even      −Σ_q cov(f_a(S), f_b(S')) = odd − even

and of what repeats from seed to seed, at most odd / (odd + even) is within reach of any sum.
"""

from itertools import combinations, permutations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.stats import rankdata


def linear_datamodelling_scores(
    scores: Float[ndarray, "n q"], subsets: Bool[ndarray, "s n"], outputs: Float[ndarray, "s q"]
) -> Float[ndarray, " q"]:
    """Return LDS(q) of every query.

    Raises:
        ValueError: A query's outputs or its predictions are the same for all subsets.
    """
    return spearman(subsets.astype(np.float64) @ scores, outputs)


def seed_agreement(outputs: Float[ndarray, "r s q"]) -> Float[ndarray, " q"]:
    """Return the mean Spearman correlation over all pairs of the r seeds, query by query."""
    pairs = [spearman(outputs[first], outputs[second]) for first, second in combinations(range(len(outputs)), 2)]
    if not pairs:
        raise ValueError(f"agreement needs at least two seeds, got {len(outputs)}; train each subset twice")
    return np.mean(pairs, axis=0)


def noise_ceiling(agreement: float, *, num_seeds: int) -> float:
    """Return √(k r / (1 + (k-1) r)), what a perfect predictor would reach; 0 where seeds do not agree at all."""
    r = max(agreement, 0.0)
    return float(np.sqrt(num_seeds * r / (1 + (num_seeds - 1) * r)))


def odd_share(outputs: Float[ndarray, "r s q"], complements: Float[ndarray, "r s q"]) -> float:
    """Return odd / (odd + even), the share of the repeatable variance that a sum over members could explain at most.

    Args:
        outputs: By r ≥ 2 seeds, of random halves.
        complements: Of each half's complement, the subset of all other candidates.
    """
    f, g = (values - values.mean(axis=1, keepdims=True) for values in (outputs, complements))
    pairs = list(permutations(range(len(f)), 2))
    same = sum(float(np.sum(f[a] * f[b] + g[a] * g[b])) for a, b in pairs) / 2
    across = sum(float(np.sum(f[a] * g[b])) for a, b in pairs)
    return (same - across) / (2 * same)


def spearman(x: Float[ndarray, "s q"], y: Float[ndarray, "s q"]) -> Float[ndarray, " q"]:
    """Return the rank correlation of each column of x with that of y; ties share their mean rank.

    Raises:
        ValueError: A column is constant, so it has no order to compare.
    """
    a, b = (rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (x, y))
    spread = np.sqrt(np.sum(a**2, axis=0) * np.sum(b**2, axis=0))
    if not np.all(spread > 0):
        column = int(np.argmin(spread > 0))
        raise ValueError(f"column {column} is the same in all {len(x)} rows and has no order; leave it out")
    return np.sum(a * b, axis=0) / spread
