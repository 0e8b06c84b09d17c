"""Gradient autocorrelation of the corpus, its damping, and the triangular whitener it defines; one block at a time.

    Φ  [n d]  projected gradients, one row an example
    R  [d d]  autocorrelation ΦᵀΦ / n: uncentred, symmetric, positive semi-definite
    C  [d d]  lower triangular with C Cᵀ = R + damping · mean_eigenvalue(R) · I
    ψ  [d]    train-whitened gradient C^-1 φ, so that <ψ, ψ'> = φᵀ (C Cᵀ)^-1 φ'

Scores depend on R^-1 only, so any W with WᵀW = R^-1 serves: C^-1 costs a fraction of the symmetric root R^(-1/2).
Of a symmetric matrix only the lower triangle is ever read.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy import ndarray


def gram(vectors: Float[ndarray, "n d"]) -> Float[ndarray, "d d"]:
    """Return ΦᵀΦ, accumulated in float64; of the symmetric product only one half is computed."""
    phi = vectors.astype(np.float64, copy=False)
    return phi.T @ phi  # the same buffer on both sides: numpy calls syrk


def empty_gram(num_dims: int) -> Float[ndarray, "d d"]:
    """Return a zero matrix in the memory order that ``add_gram`` adds to in place."""
    return np.zeros((num_dims, num_dims), order="F")


def add_gram(
    total: Float[ndarray, "d d"], vectors: Float[ndarray, "n d"], *, sign: float = 1.0
) -> Float[ndarray, "d d"]:
    """Return total + sign · ΦᵀΦ, in float64 and in place; only the lower triangle is computed, so half the work."""
    phi = vectors.astype(np.float64, copy=False)
    return scipy.linalg.blas.dsyrk(sign, phi.T, beta=1.0, c=total, lower=1, overwrite_c=1)


def spectrum(R: Float[ndarray, "d d"]) -> Float[ndarray, " d"]:
    """Return the eigenvalues of R, largest first; rounding below zero is cut off."""
    return np.maximum(scipy.linalg.eigvalsh(R, check_finite=True)[::-1], 0.0)


def mean_eigenvalue(R: Float[ndarray, "d d"]) -> float:
    return float(np.trace(R)) / len(R)


def damped_factor(R: Float[ndarray, "d d"], *, damping: float) -> Float[ndarray, "d d"]:
    """Return C, the lower Cholesky factor of ``R + damping * mean_eigenvalue(R) * I``.

    Args:
        R: Autocorrelation.
        damping: Unitless, relative to the mean eigenvalue, so that rescaling every gradient leaves scores unchanged.

    Raises:
        ValueError: R is zero or not finite, or the damped matrix is singular to float64.
    """
    mean = mean_eigenvalue(R)
    if not (0 < mean < np.inf):
        raise ValueError(f"the mean eigenvalue of R is {mean}; it must be positive: are all gradients of a block zero?")
    damped = R.copy(order="F")
    damped[np.diag_indices_from(damped)] += damping * mean
    try:
        C = scipy.linalg.cholesky(damped, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError:
        raise ValueError(_singular(damping, 0.0)) from None
    # A pivot this small is rounding: the matrix could as well have failed to factor.
    smallest = float(np.min(np.diag(C))) ** 2
    if not smallest > len(R) * np.finfo(np.float64).eps * mean:
        raise ValueError(_singular(damping, smallest / mean))
    return C


def whiten(C: Float[ndarray, "d d"] | float, vectors: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    """Return ψ = C^-1 φ for each row φ; a number c stands for c I."""
    if isinstance(C, float):
        return vectors.astype(np.float64) / C
    return scipy.linalg.solve_triangular(C, vectors.T.astype(np.float64), lower=True, check_finite=False).T


def solve_transposed(C: Float[ndarray, "d d"] | float, V: Float[ndarray, "d r"]) -> Float[ndarray, "d r"]:
    """Return C^-T V, the columns whose product with φ is that of V with ψ."""
    if isinstance(C, float):
        return V / C
    return scipy.linalg.solve_triangular(C, V, lower=True, trans="T", check_finite=False)


def squared_norms(vectors: Float[ndarray, "n d"]) -> Float[ndarray, " n"]:
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)


@dataclass(frozen=True)
class SpectrumReport:
    """What the eigenvalues σ of R say about it, and about a damping of δ = damping · mean(σ).

    Attributes:
        num_dims: d.
        rank: Number of σ above the rounding of the largest.
        effective_rank: exp(−Σ p log p), p = σ / Σ σ.
        condition: (σ_max + δ) / (σ_min + δ), infinite for a singular R without damping.
        effective_dimension: Σ σ / (σ + δ), the number of directions that R decides rather than damping.
        damping_share: 1 − effective_dimension / d, the mean share of δ in σ + δ.
    """

    num_dims: int
    rank: int
    effective_rank: int
    condition: float
    effective_dimension: float
    damping_share: float

    def facts(self) -> dict[str, int | float | None]:
        """As JSON has it: no infinity."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def spectrum_report(eigenvalues: Float[ndarray, " d"], *, damping: float) -> SpectrumReport:
    """Return rank, condition and what damping decides, from the eigenvalues of R, the zeros among them."""
    num_dims = len(eigenvalues)
    delta = damping * eigenvalues.mean()
    lowest, highest = eigenvalues.min() + delta, eigenvalues.max() + delta
    damped = eigenvalues + delta
    dimension = float(np.sum(np.divide(eigenvalues, damped, out=np.zeros(num_dims), where=damped > 0)))
    return SpectrumReport(
        num_dims=num_dims,
        rank=int(np.sum(eigenvalues > num_dims * np.finfo(np.float64).eps * eigenvalues.max())),
        effective_rank=effective_rank(eigenvalues),
        condition=float(highest / lowest) if lowest > 0 else float("inf"),
        effective_dimension=dimension,
        damping_share=1 - dimension / num_dims,
    )


def joint_report(blocks: Sequence[SpectrumReport]) -> SpectrumReport:
    """Return what the blocks are together, each damped by itself: sums, and the condition of the worst."""
    num_dims, dimension = sum(b.num_dims for b in blocks), sum(b.effective_dimension for b in blocks)
    return SpectrumReport(
        num_dims=num_dims,
        rank=sum(b.rank for b in blocks),
        effective_rank=sum(b.effective_rank for b in blocks),
        condition=max(b.condition for b in blocks),
        effective_dimension=dimension,
        damping_share=1 - dimension / num_dims,
    )


def effective_rank(spectrum: Float[ndarray, " d"]) -> int:
    """Return exp(−Σ p log p) of p = σ / Σ σ, rounded: the rank for equal eigenvalues, 0 for a zero matrix."""
    positive = spectrum[spectrum > 0]
    if len(positive) == 0:
        return 0
    p = positive / positive.sum()
    return round(float(np.exp(-np.sum(p * np.log(p)))))


def _singular(damping: float, pivot: float) -> str:
    return (
        f"R is singular at damping={damping:g}: smallest pivot is {pivot:.1e} of the mean eigenvalue; "
        "raise damping, or fit R on more gradients than it has dimensions"
    )
