"""Gradient autocorrelation of the corpus, its damping, and the triangular whitener it defines; one block at a time.

    Φ  [n d]  projected gradients, one row an example
    R  [d d]  autocorrelation ΦᵀΦ / n: uncentred, symmetric, positive semi-definite
    C  [d d]  lower triangular with C Cᵀ = R + damping · mean_eigenvalue(R) · I
    ψ  [d]    train-whitened gradient C^-1 φ, so that <ψ, ψ'> = φᵀ (C Cᵀ)^-1 φ'

Scores depend on R^-1 only, so any W with WᵀW = R^-1 serves: C^-1 costs a fraction of the symmetric root R^(-1/2).
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy import ndarray


def gram(vectors: Float[ndarray, "n d"]) -> Float[ndarray, "d d"]:
    """Return ΦᵀΦ, accumulated in float64; of the symmetric product only one half is computed."""
    phi = vectors.astype(np.float64, copy=False)
    return phi.T @ phi  # the same buffer on both sides: numpy calls syrk


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
    damped = R + damping * mean * np.eye(len(R))
    try:
        C = scipy.linalg.cholesky(damped, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError:
        raise ValueError(_singular(damping, 0.0)) from None
    # A pivot this small is rounding: the matrix could as well have failed to factor.
    smallest = float(np.min(np.diag(C))) ** 2
    if not smallest > len(R) * np.finfo(np.float64).eps * mean:
        raise ValueError(_singular(damping, smallest / mean))
    return C


def whiten(C: Float[ndarray, "d d"], vectors: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    """Return ψ = C^-1 φ for each row φ."""
    return scipy.linalg.solve_triangular(C, vectors.T.astype(np.float64), lower=True, check_finite=False).T


def solve_transposed(C: Float[ndarray, "d d"], V: Float[ndarray, "d r"]) -> Float[ndarray, "d r"]:
    """Return C^-T V, the columns whose product with φ is that of V with ψ."""
    return scipy.linalg.solve_triangular(C, V, lower=True, trans="T", check_finite=False)


def squared_norms(vectors: Float[ndarray, "n d"]) -> Float[ndarray, " n"]:
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)


def _singular(damping: float, pivot: float) -> str:
    return (
        f"R is singular at damping={damping:g}: smallest pivot is {pivot:.1e} of the mean eigenvalue; "
        "raise damping, or fit R on more gradients than it has dimensions"
    )
