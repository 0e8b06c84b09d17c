"""Scores from inner products of gradients alone, where gradients are too long to be held and R_train is s I.

    p  [n q]  φ_m · φ_q of candidates and queries          K  [q q]  φ_q · φ_q'
    ΨΨᵀ = K / s = U diag(σ²) Uᵀ, so R̃_eval = ΨᵀΨ / q has eigenvalues σ² / q and eigenvectors V = Ψᵀ U / σ

    t(m) = Vᵀ ψ_m = (p / s) U / σ            t(q) = U σ            ‖ψ‖² = ‖φ‖² / s

What follows is ``scores.influences``: with these t it never asks for a gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from trackstar.tasks.numerics.scores import QueryBasis, influences

COLUMNS_AT_ONCE = 1 << 16


class Products(NamedTuple):
    """Inner products of one block's gradients.

    Attributes:
        queries: K.
        candidates: p.
        norms: ‖φ_m‖².
    """

    queries: Float[ndarray, "q q"]
    candidates: Float[ndarray, "n q"]
    norms: Float[ndarray, " n"]


def inner_products(rows: Float[ndarray, "n d"], others: Float[ndarray, "m d"]) -> Float[ndarray, "n m"]:
    """Return all inner products, in float64; only a few columns are ever held in it."""
    total = np.zeros((len(rows), len(others)))
    for start in range(0, rows.shape[1], COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        total += rows[:, columns].astype(np.float64) @ others[:, columns].astype(np.float64).T
    return total


def whole_influences(
    blocks: Sequence[Products], mean_squares: Sequence[float], *, mixing_weights: Sequence[float], unit_norm: bool
) -> Float[ndarray, "l n q"]:
    """Return I(z_m, z_q) for every mixing weight, candidate and query, R = (1-λ) s I + λ R_eval in each block.

    Args:
        mean_squares: s by block; 1 where nothing is whitened.
    """
    coordinates, bases = [], []
    for block, s in zip(blocks, mean_squares, strict=True):
        squares, U = np.linalg.eigh(block.queries / s)
        kept = squares > len(squares) * np.finfo(np.float64).eps * squares[-1]
        σ, U = np.sqrt(squares[kept]), U[:, kept]
        coordinates.append(block.candidates / s @ U / σ)
        bases.append(QueryBasis(np.empty((0, len(σ))), σ**2 / len(U), U * σ))
    norms = np.stack([block.norms / s for block, s in zip(blocks, mean_squares, strict=True)], axis=1)
    return influences(coordinates, norms, bases, mixing_weights=mixing_weights, unit_norm=unit_norm)
