"""How well a ranking finds its evidence, and how sure a mean over queries is.

    ranked    candidate ids of one query, best first, each once
    relevant  the ids that are evidence for it, at least one
    values    [n] one number per query

The mean of ``reciprocal_rank`` over queries is MRR. What Chang et al. 2024 call recall@10 (is any proponent among
the first ten evidence?) is ``hit_at_k`` here, because ``recall_at_k`` keeps its usual meaning.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from jaxtyping import Float

RESAMPLES_AT_ONCE = 1 << 22  # indices drawn together: 32 MiB


def reciprocal_rank(ranked: Sequence[str], relevant: AbstractSet[str]) -> float:
    """Return ``1 / rank`` of the first relevant candidate, and 0 where the ranking ends before it.

    A ranking cut at k therefore gives a lower bound that is at most 1/(k+1) below the value of the full one.
    """
    _require_evidence(relevant)
    return next((1 / rank for rank, name in enumerate(ranked, start=1) if name in relevant), 0.0)


def hit_at_k(ranked: Sequence[str], relevant: AbstractSet[str], *, k: int) -> float:
    """Return 1 if any of the first k is relevant, else 0."""
    _require_evidence(relevant)
    return float(not relevant.isdisjoint(ranked[:k]))


def recall_at_k(ranked: Sequence[str], relevant: AbstractSet[str], *, k: int) -> float:
    """Return ``|relevant ∩ first k| / |relevant|``."""
    _require_evidence(relevant)
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def precision_at_k(ranked: Sequence[str], relevant: AbstractSet[str], *, k: int) -> float:
    """Return ``|relevant ∩ first k| / k``, also where the ranking is shorter than k."""
    _require_evidence(relevant)
    return len(relevant.intersection(ranked[:k])) / k


def bootstrap_interval(
    values: Float[np.ndarray, "n"],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> tuple[float, float]:
    """Return the percentile interval of the mean of n values drawn with replacement.

    Given the differences between two methods on the same queries it is the paired interval of their difference.
    One value has an interval of no width: nothing can be resampled from it.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"a bootstrap needs at least one value and finite ones, got {values.size}: {values[:5]}")
    means = _resampled_means(values.astype(np.float64), generator=generator, num_resamples=num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(
    values: Float[np.ndarray, "n"], *, generator: np.random.Generator, num_resamples: int
) -> Float[np.ndarray, "num_resamples"]:
    step = max(1, RESAMPLES_AT_ONCE // values.size)
    sizes = [min(step, num_resamples - start) for start in range(0, num_resamples, step)]
    drawn = (generator.integers(values.size, size=(size, values.size)) for size in sizes)
    return np.concatenate([values[indices].mean(axis=1) for indices in drawn])


def _require_evidence(relevant: AbstractSet[str]) -> None:
    if not relevant:
        raise ValueError("a query without relevant ids has no retrieval metric; leave it out of the mean")
