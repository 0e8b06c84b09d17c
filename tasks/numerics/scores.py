"""Influence scores for every mixing weight at once, from one low-rank pass over the corpus.

    φ  [d]      projected gradient of a candidate        Q        number of queries
    C  [d d]    C Cᵀ = damped R_train                    ψ = C^-1 φ
    Ψ  [Q d]    train-whitened query gradients           R̃_eval = ΨᵀΨ / Q = V diag(s) Vᵀ,  V [d r], r ≤ Q

In the basis where R_train is whitened R = (1-λ) I + λ R̃_eval, so with t = Vᵀψ = (C^-T V)ᵀ φ

    R^-1 = (1/(1-λ)) (I − V Vᵀ) + V diag(1/(λ s + 1-λ)) Vᵀ
    φ_mᵀ R^-1 φ_q = Σ_i t_i(m) t_i(q) / (λ s_i + 1-λ)                            (Ψ lies in the span of V)
    φ_mᵀ R^-1 φ_m = (‖ψ‖² − ‖t‖²) / (1-λ) + Σ_i t_i(m)² / (λ s_i + 1-λ)

A candidate costs d·r multiplications for the whole query set; ‖ψ‖² is measured once for all query sets. float64
throughout: ‖ψ‖² − ‖t‖² cancels for a candidate that lies in the span of few queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from tasks.numerics.curvature import solve_transposed, whiten


@dataclass(frozen=True)
class QueryBasis:
    """One block's view of a query set.

    Attributes:
        readout: C^-T V [d r]: a candidate's coordinates are t = φ @ readout.
        eigenvalues: s [r] of R̃_eval, positive.
        coordinates: t of the queries [Q r].
    """

    readout: Float[ndarray, "d r"]
    eigenvalues: Float[ndarray, " r"]
    coordinates: Float[ndarray, "q r"]


def query_basis(C: Float[ndarray, "d d"] | None, query_vectors: Float[ndarray, "q d"]) -> QueryBasis:
    """Decompose R̃_eval = ΨᵀΨ / Q. Without C, nothing is whitened: ψ = φ."""
    phi = query_vectors.astype(np.float64)
    psi = phi if C is None else whiten(C, phi)
    U, sigma, Vt = np.linalg.svd(psi, full_matrices=False)
    kept = sigma > max(psi.shape) * np.finfo(np.float64).eps * sigma[0]
    U, sigma, V = U[:, kept], sigma[kept], Vt[kept].T
    readout = V if C is None else solve_transposed(C, V)
    return QueryBasis(readout, sigma**2 / len(psi), U * sigma)


def influence(
    coordinates: Sequence[Float[ndarray, "n _"]],
    train_norms: Float[ndarray, "n b"],
    bases: Sequence[QueryBasis],
    *,
    mixing_weight: float,
    unit_norm: bool,
) -> Float[ndarray, "n q"]:
    """Return I(z_m, z_q) = Ḡ(z_m) · Ḡ(z_q) for every candidate and query.

    Args:
        coordinates: t of the candidates, one array a block.
        train_norms: ‖ψ‖² of the candidates, one column a block.
        bases: One a block.
        mixing_weight: λ in [0, 1).
        unit_norm: Whether encodings are normalised; without it scores are φ_mᵀ R^-1 φ_q.

    Raises:
        ValueError: λ is outside [0, 1).
    """
    if not 0 <= mixing_weight < 1:
        raise ValueError(f"the mixing weight is {mixing_weight}; it must be at least 0 and less than 1")
    products = np.zeros((len(train_norms), len(bases[0].coordinates)))
    candidate_norms, query_norms = np.zeros(products.shape[0]), np.zeros(products.shape[1])
    for t, psi_norms, basis in zip(coordinates, train_norms.T, bases, strict=True):
        weights = 1 / (mixing_weight * basis.eigenvalues + 1 - mixing_weight)
        products += (t * weights) @ basis.coordinates.T
        outside = np.maximum(psi_norms - np.sum(t**2, axis=1), 0.0)
        candidate_norms += outside / (1 - mixing_weight) + t**2 @ weights
        query_norms += basis.coordinates**2 @ weights
    return products / np.sqrt(np.outer(candidate_norms, query_norms)) if unit_norm else products
