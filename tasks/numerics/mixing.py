"""The mixing weight λ, chosen where the two singular-value curves cross.

    σ_train, σ_eval   singular values of R_train and R_eval, all blocks together, largest first
    λ σ_eval[k] = (1-λ) σ_train[k]    ⇔    λ = σ_train[k] / (σ_eval[k] + σ_train[k])

Chang et al. 2024, Appendix A: the curves cross near component 1000 of 65,536, so that the directions in which
queries are strongest are those of the task they share, and are damped. Few queries span fewer directions than that, and
the last of those hold next to nothing (a query answered with certainty has next to no gradient): a crossing there would
send λ to 1. Such a matrix is taken at its effective rank exp(−Σ p log p), p = σ / Σ σ (Roy and Vetterli 2007).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

CROSSING_FRACTION = 1000 / 65_536


@dataclass(frozen=True)
class MixingWeight:
    """λ and how it came about.

    Attributes:
        value: λ.
        crossing_index: The 1-based component at which the curves were made to cross.
        wanted_index: The component the paper's fraction asks for.
        limited_by: "R_eval" or "R_train" where its effective rank is below the wanted index, else None.
    """

    value: float
    crossing_index: int
    wanted_index: int
    limited_by: str | None


def crossing_mixing_weight(
    train_spectrum: Float[ndarray, " d"], eval_spectrum: Float[ndarray, " e"], *, num_dims: int
) -> MixingWeight:
    """Return λ = σ_train[k] / (σ_eval[k] + σ_train[k]) at k = num_dims · 1000/65,536, or at a smaller effective rank.

    Args:
        train_spectrum: Eigenvalues of R_train of all blocks, in any order.
        eval_spectrum: The nonzero eigenvalues of R_eval of all blocks, in any order.
        num_dims: Dimensions of all blocks together.

    Raises:
        ValueError: Either matrix is zero.
    """
    train, evaluation = np.sort(train_spectrum)[::-1], np.sort(eval_spectrum)[::-1]
    ranks = {"R_eval": effective_rank(evaluation), "R_train": effective_rank(train)}
    for name, rank in ranks.items():
        if rank == 0:
            raise ValueError(f"{name} is zero, so no mixing weight follows from it; give one, or use train whitening")
    wanted = max(1, round(CROSSING_FRACTION * num_dims))
    smaller = min(ranks, key=ranks.__getitem__)
    index = min(wanted, ranks[smaller])
    value = train[index - 1] / (evaluation[index - 1] + train[index - 1])
    return MixingWeight(float(value), index, wanted, smaller if index < wanted else None)


def effective_rank(spectrum: Float[ndarray, " d"]) -> int:
    """Return exp(−Σ p log p) of p = σ / Σ σ, rounded: the rank for equal eigenvalues, 0 for a zero matrix."""
    positive = spectrum[spectrum > 0]
    if len(positive) == 0:
        return 0
    p = positive / positive.sum()
    return round(float(np.exp(-np.sum(p * np.log(p)))))
