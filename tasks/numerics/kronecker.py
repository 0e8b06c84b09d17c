"""A Kronecker-factored stand-in for the Gauss-Newton matrix: the preconditioner of its solves.

    x_t  [n]  input of a matrix at token t         A = Σ_t x_t x_tᵀ = U_A diag(a) U_Aᵀ
    δ_t  [m]  gradient of the loss at its output   S = Σ_t δ_t δ_tᵀ = U_S diag(s) U_Sᵀ
    t         every token before the last whose loss counts; of an expert, those that it is given
    V  [m n]  one matrix's part of a vector        κ   one number for all matrices

    H V ≈ κ S V A         (H + δ I)^-1 V ≈ U_S ((U_Sᵀ V U_A) / (κ s aᵀ + δ)) U_Aᵀ

Martens and Grosse 2015, with the gradients of the actual targets. It decides how fast a solve converges and not to
what, so neither that nor the missing curvature between matrices costs anything but iterations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.taps import TappedModel


@dataclass(frozen=True)
class Eigenbasis:
    """One matrix's factors, in the orientation that its parameter is stored in."""

    rows: Float[Tensor, "r r"]
    columns: Float[Tensor, "c c"]
    eigenvalues: Float[Tensor, "r c"]  # products of both factors' eigenvalues, before κ


class KroneckerPreconditioner:
    """``v ↦ (κ S ⊗ A + δ I)^-1 v``, matrix by matrix.

    Args:
        bases: In the order of the parts of a vector.
        mean_eigenvalue: Of H; κ gives the stand-in the same, above 0.
        damping: δ, above 0.
    """

    def __init__(self, bases: Sequence[Eigenbasis], *, mean_eigenvalue: float, damping: float) -> None:
        num_parameters = sum(basis.eigenvalues.numel() for basis in bases)
        scale = mean_eigenvalue * num_parameters / float(sum(basis.eigenvalues.sum() for basis in bases))
        self._bases = bases
        self._inverses = [1 / (scale * basis.eigenvalues + damping) for basis in bases]

    def __call__(self, vectors: Float[Tensor, "q D"]) -> Float[Tensor, "q D"]:
        sizes = [inverse.numel() for inverse in self._inverses]
        parts = zip(vectors.split(sizes, dim=1), self._bases, self._inverses, strict=True)
        return torch.cat([_apply(part, basis, inverse) for part, basis, inverse in parts], dim=1)


def eigenbases(
    model: nn.Module,
    matrices: Sequence[WeightMatrix],
    batches: Iterable[tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]],
) -> list[Eigenbasis]:
    """Factors of every matrix over some batches, in one forward and one activation-backward pass."""
    taps = [_FactorTap(matrix) for matrix in matrices]
    with TappedModel(model, taps) as tapped:
        for tokens, chosen in batches:
            predicts = _predicts(chosen)
            for tap in taps:
                tap.predicts = predicts
            tapped.backward(tokens, chosen)
    return [tap.eigenbasis() for tap in taps]


def _predicts(chosen: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Which tokens come before a chosen one.

    Not where δ_t ≠ 0: the query of a row's first token has no gradient, and whether it is 0 or 1e-20 is rounding.
    """
    following = chosen.flip(1).cummax(1).values.flip(1)
    return torch.cat([following[:, 1:], torch.zeros_like(following[:, :1])], dim=1)


class _FactorTap:
    """Sums A and S of one matrix."""

    keeps_places = True  # of the tokens that an expert is given; there x_t is zero for those of other experts
    predicts: Bool[Tensor, "b t"]

    def __init__(self, matrix: WeightMatrix) -> None:
        m, n = matrix.shape
        self.module, self._is_transposed = matrix.module, matrix.transposed
        self._A = torch.zeros(n, n, dtype=torch.float64)
        self._S = torch.zeros(m, m, dtype=torch.float64)
        self._dtype = torch.float64

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        self._dtype = activations.dtype
        return activations

    def receive(self, kept: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        x, delta = kept[self.predicts].double(), output_gradients[self.predicts].double()
        self._A += x.T @ x
        self._S += delta.T @ delta

    def eigenbasis(self) -> Eigenbasis:
        first, second = (self._A, self._S) if self._is_transposed else (self._S, self._A)
        (row_values, rows), (column_values, columns) = torch.linalg.eigh(first), torch.linalg.eigh(second)
        products = torch.outer(row_values.clamp(min=0), column_values.clamp(min=0))
        return Eigenbasis(*(values.to(self._dtype) for values in (rows, columns, products)))


def _apply(part: Float[Tensor, "q _"], basis: Eigenbasis, inverse: Float[Tensor, "r c"]) -> Float[Tensor, "q _"]:
    V = part.unflatten(1, inverse.shape)
    return (basis.rows @ ((basis.rows.T @ V @ basis.columns) * inverse) @ basis.columns.T).flatten(1)
