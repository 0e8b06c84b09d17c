"""Influence scores for every mixing weight at once, from one low-rank pass over the corpus.

    φ  [d]      projected gradient of a candidate        Q        number of queries
    C  [d d]    C Cᵀ = damped R_train, or √s of s I      ψ = C^-1 φ
    Ψ  [Q d]    train-whitened query gradients           R̃_eval = ΨᵀΨ / Q = V diag(s) Vᵀ,  V [d r], r ≤ Q

In the basis where R_train is whitened R = (1-λ) I + λ R̃_eval, so with t = Vᵀψ = (C^-T V)ᵀ φ

    R^-1 = (1/(1-λ)) (I − V Vᵀ) + V diag(1/(λ s + 1-λ)) Vᵀ
    φ_mᵀ R^-1 φ_q = Σ_i t_i(m) t_i(q) / (λ s_i + 1-λ)                            (Ψ lies in the span of V)
    φ_mᵀ R^-1 φ_m = (‖ψ‖² − ‖t‖²) / (1-λ) + Σ_i t_i(m)² / (λ s_i + 1-λ)

A candidate costs d·r multiplications for the whole query set and all λ; ‖ψ‖² is measured once for all query sets.
All of it is float64 but the product t, which is float32 where that shows in no score (``Readout``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from trackstar.tasks.numerics.curvature import solve_transposed, whiten

SCORE_ROUNDING = 1e-5  # what float32 products may change in a score: a tenth of what float32 gradients do
UNIT_ROUNDOFF = 2.0**-24


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


def query_basis(C: Float[ndarray, "d d"] | float | None, query_vectors: Float[ndarray, "q d"]) -> QueryBasis:
    """Decompose R̃_eval = ΨᵀΨ / Q. A number c stands for C = c I; without C, nothing is whitened: ψ = φ."""
    C = 1.0 if C is None else C
    psi = whiten(C, query_vectors)
    U, sigma, Vt = np.linalg.svd(psi, full_matrices=False)
    kept = sigma > max(psi.shape) * np.finfo(np.float64).eps * sigma[0]
    U, sigma, V = U[:, kept], sigma[kept], Vt[kept].T
    return QueryBasis(solve_transposed(C, V), sigma**2 / len(psi), U * sigma)


class Readout:
    """Candidates' coordinates t = φ @ readout, at the speed of float32 and as exact as scores need.

    A float32 product is off by at most ε = u ‖φ‖ ‖readout‖. Carried through the two equations above, whatever λ and s
    are, that moves a score by at most ε (√o + ‖t‖) / o, o = ‖ψ‖² − ‖t‖². Where this exceeds ``SCORE_ROUNDING`` (R_train
    hardly damped, or a candidate in the span of the queries, where o is a difference of equals) t is float64.
    """

    def __init__(self, basis: QueryBasis) -> None:
        self._exact = np.ascontiguousarray(basis.readout)  # one memory order: one order of sums, wherever it came from
        self._fast = self._exact.astype(np.float32)
        self._rounding = UNIT_ROUNDOFF * float(np.linalg.norm(basis.readout))

    def __call__(
        self, vectors: Float[ndarray, "n d"], *, train_norms: Float[ndarray, " n"], norms: Float[ndarray, " n"]
    ) -> Float[ndarray, "n r"]:
        """Return t of some candidates.

        Args:
            vectors: φ, float32.
            train_norms: ‖ψ‖².
            norms: ‖φ‖².
        """
        t = (vectors @ self._fast).astype(np.float64)
        inside = np.einsum("nr,nr->n", t, t)
        outside = np.maximum(train_norms - inside, 0.0)
        moved = self._rounding * np.sqrt(norms) * (np.sqrt(outside) + np.sqrt(inside))
        rough = ~(moved <= SCORE_ROUNDING * outside)
        if rough.any():
            t[rough] = vectors[rough].astype(np.float64) @ self._exact
        return t


def influence(
    coordinates: Sequence[Float[ndarray, "n _"]],
    train_norms: Float[ndarray, "n b"],
    bases: Sequence[QueryBasis],
    *,
    mixing_weight: float,
    unit_norm: bool,
) -> Float[ndarray, "n q"]:
    """Return I(z_m, z_q) = Ḡ(z_m) · Ḡ(z_q) for every candidate and query, at one λ; see ``influences``."""
    return influences(coordinates, train_norms, bases, mixing_weights=[mixing_weight], unit_norm=unit_norm)[0]


def influences(
    coordinates: Sequence[Float[ndarray, "n _"]],
    train_norms: Float[ndarray, "n b"],
    bases: Sequence[QueryBasis],
    *,
    mixing_weights: Sequence[float],
    unit_norm: bool,
) -> Float[ndarray, "l n q"]:
    """Return I(z_m, z_q) = Ḡ(z_m) · Ḡ(z_q) for every mixing weight, candidate and query.

    Args:
        coordinates: t of the candidates, one array a block.
        train_norms: ‖ψ‖² of the candidates, one column a block.
        bases: One a block.
        mixing_weights: Each λ in [0, 1).
        unit_norm: Whether encodings are normalised; without it scores are φ_mᵀ R^-1 φ_q.

    Raises:
        ValueError: A λ is outside [0, 1).
    """
    for weight in mixing_weights:
        if not 0 <= weight < 1:
            raise ValueError(f"the mixing weight is {weight}; it must be at least 0 and less than 1")
    λ = np.asarray(mixing_weights, dtype=np.float64)[:, None]
    products = np.zeros((len(λ), len(train_norms), len(bases[0].coordinates)))
    candidate_norms, query_norms = np.zeros(products.shape[:2]), np.zeros((len(λ), products.shape[2]))
    for t, psi_norms, basis in zip(coordinates, train_norms.T, bases, strict=True):
        weights = 1 / (λ * basis.eigenvalues + 1 - λ)  # [l r]
        products += t @ (weights[:, None] * basis.coordinates).transpose(0, 2, 1)
        squares = t**2
        outside = np.maximum(psi_norms - squares.sum(axis=1), 0.0)
        candidate_norms += outside / (1 - λ) + weights @ squares.T
        query_norms += weights @ (basis.coordinates**2).T
    if not unit_norm:
        return products
    return products / np.sqrt(candidate_norms[:, :, None] * query_norms[:, None, :])
