"""From gradients to vectors to scores, by the functions the language-model path uses.

Every vector is one of: the flattened gradient, the same divided by √V, and the latter projected, either one-sided
(one Gaussian matrix over the flattened gradient) or two-sided (L G Rᵀ per parameter; a bias has one column and R = 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from trackstar.tasks.mnist.mlp import Gradients
from trackstar.tasks.numerics.curvature import damped_factor, squared_norms, whiten
from trackstar.tasks.numerics.projection import gaussian_projection
from trackstar.tasks.numerics.scores import QueryBasis, influence, query_basis
from trackstar.tasks.numerics.second_moment import FullSecondMoment, inverse_root


@dataclass(frozen=True)
class TwoSidedProjection:
    """L [k m] and R [l n] of one parameter: l is k for a weight matrix and 1 for a bias, which has one column."""

    left: Tensor
    right: Tensor

    @property
    def num_dims(self) -> int:
        return len(self.left) * len(self.right)


def corrected(gradients: Gradients, V: Mapping[str, FullSecondMoment], *, epsilon: float) -> Gradients:
    """``G / √(V + ε² mean(V))`` of every parameter."""
    return {name: G * inverse_root(V[name], epsilon=epsilon).to(G.dtype) for name, G in gradients.items()}


def flattened(gradients: Gradients) -> ndarray:
    """All parameters one after another [b D]."""
    return torch.cat([G.flatten(1) for G in gradients.values()], dim=1).numpy()


def two_sided_projections(gradients: Gradients, *, projection_dim: int, seed: int) -> dict[str, TwoSidedProjection]:
    """L [k m] and R [k n] of every matrix; a bias, of one column, keeps it: R = 1."""
    projections = {}
    for name, G in gradients.items():
        m, n = G.shape[1:]

        def draw(side, input_dim, name=name):
            return gaussian_projection(
                seed=seed, matrix_name=name, side=side, projection_dim=projection_dim, input_dim=input_dim
            )

        right = torch.ones(1, 1) if n == 1 else draw("right", n)
        projections[name] = TwoSidedProjection(left=draw("left", m), right=right)
    return projections


def two_sided(gradients: Gradients, projections: Mapping[str, TwoSidedProjection]) -> ndarray:
    """``L G Rᵀ`` of every parameter, flattened, one after another: 2k² + 2k numbers."""
    parts = [(P.left @ gradients[name] @ P.right.T).flatten(1) for name, P in projections.items()]
    return torch.cat(parts, dim=1).numpy()


def one_sided(flat: Sequence[ndarray], *, num_dims: int, seed: int, name: str = "flattened") -> list[ndarray]:
    """One dense Gaussian projection of each set of flattened gradients, to as many numbers."""
    num_inputs = flat[0].shape[1]
    P = gaussian_projection(seed=seed, matrix_name=name, side="right", projection_dim=num_dims, input_dim=num_inputs)
    return [vectors @ P.numpy().T for vectors in flat]


def one_sided_by_parameter(
    gradients: Sequence[Gradients], projections: Mapping[str, TwoSidedProjection], *, seed: int
) -> list[ndarray]:
    """A dense Gaussian projection of each parameter, to as many numbers as its two-sided one has."""
    parts = []
    for name, P in projections.items():
        flat = [g[name].flatten(1).numpy() for g in gradients]
        parts.append(one_sided(flat, num_dims=P.num_dims, seed=seed, name=f"flattened {name}"))
    return [np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True)]


def directions(
    projections: Mapping[str, TwoSidedProjection], V: Mapping[str, FullSecondMoment], *, epsilon: float
) -> dict[str, Tensor]:
    """The rows of P/√V as gradient-shaped matrices [d m n], each in its own parameter and zero in the others."""
    num_dims = sum(P.num_dims for P in projections.values())
    rows, start = {}, 0
    for name, P in projections.items():
        own = torch.einsum("im,jn->ijmn", P.left, P.right).flatten(0, 1) * inverse_root(V[name], epsilon=epsilon)
        rows[name] = torch.zeros(num_dims, *own.shape[1:])
        rows[name][start : start + P.num_dims] = own
        start += P.num_dims
    return rows


class Scorer:
    """Scores of several candidate sets for one query set, under one damped R; each λ and both norms come cheap."""

    def __init__(
        self, queries: ndarray, candidates: Sequence[ndarray], *, R: ndarray | None = None, damping: float = 0.0
    ) -> None:
        C = None if R is None else damped_factor(R, damping=damping)
        self._basis: QueryBasis = query_basis(C, queries)
        self._coordinates = [vectors.astype(np.float64) @ self._basis.readout for vectors in candidates]
        self._norms = [squared_norms(vectors if C is None else whiten(C, vectors)) for vectors in candidates]

    def scores(self, *, mixing_weight: float = 0.0, unit_norm: bool = True) -> list[ndarray]:
        """I(z_m, z_q) [n q] of each candidate set."""
        return [
            influence([coordinates], norms[:, None], [self._basis], mixing_weight=mixing_weight, unit_norm=unit_norm)
            for coordinates, norms in zip(self._coordinates, self._norms, strict=True)
        ]
