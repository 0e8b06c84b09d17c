"""The mixing weight λ, chosen where the two singular-value curves cross.

    σ_train, σ_eval   singular values of R_train and R_eval, all blocks together, largest first
    λ σ_eval[k] = (1-λ) σ_train[k]    ⇔    λ = σ_train[k] / (σ_eval[k] + σ_train[k])

Chang et al. 2024, Appendix A: the curves cross near component 1000 of 65,536, so that the directions in which
queries are strongest are those of the task they share, and are damped. Few queries span fewer directions than that, and
the last of those hold next to nothing (a query answered with certainty has next to no gradient): a crossing there would
send λ to 1. Such a matrix is taken at its effective rank exp(−Σ p log p), p = σ / Σ σ (Roy and Vetterli 2007).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from trackstar.tasks.numerics.curvature import effective_rank

CROSSING_FRACTION = 1000 / 65_536


@dataclass(frozen=True)
class MixingWeight:
    """λ and how it came about.

    Attributes:
        value: λ.
        crossing_index: The 1-based component at which the curves were made to cross.
        wanted_index: The component the paper's fraction asks for.
        limited_by: "R_eval" or "R_train" where its effective rank is below the wanted index, else None.
        train_value, eval_value: σ_train and σ_eval at the crossing; None for a λ that was given.
    """

    value: float
    crossing_index: int = 0
    wanted_index: int = 0
    limited_by: str | None = None
    train_value: float | None = None
    eval_value: float | None = None


def eval_spectrum(query_vectors: Iterable[Float[ndarray, "q _"]]) -> Float[ndarray, " e"]:
    """Return the eigenvalues of R_eval = ΦᵀΦ / Q of all blocks together, one block after another, zeros left out.

    Args:
        query_vectors: The projected gradients of the queries, one array a block.
    """
    values = [np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2 / len(rows) for rows in query_vectors]
    return np.concatenate(values)


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
    sigma_train, sigma_eval = float(train[index - 1]), float(evaluation[index - 1])
    return MixingWeight(
        value=sigma_train / (sigma_eval + sigma_train),
        crossing_index=index,
        wanted_index=wanted,
        limited_by=smaller if index < wanted else None,
        train_value=sigma_train,
        eval_value=sigma_eval,
    )
