"""K-FAC: a gradient half-whitened on both sides by the Kronecker factors of the Fisher matrix; it folds whole.

    x_t  [n]    input of the matrix at token t            A = E[x xᵀ] = Q_A diag(a) Q_Aᵀ      [n n]
    δ_t  [m]    gradient of the loss at its output        S = E[δ δᵀ] = Q_S diag(s) Q_Sᵀ      [m m]
    t: where there is a loss; labels drawn from the model (labels.py), or those of the corpus

    G ↦ (S + ε_S I)^-½ G (A + ε_A I)^-½        ε = damping · mean eigenvalue
    L' = L (S + ε_S I)^-½                      R' = R (A + ε_A I)^-½

Martens and Grosse 2015, Eq. 1: the Fisher matrix of one weight is close to A ⊗ S, so what comes out is close to white.
An expert sees a part of the tokens only: A is the mean over those, S the sum over those divided by all tokens, so that
A ⊗ S carries how often the expert is asked, once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections.correction import Correction, Floors
from trackstar.tasks.numerics.gradients import MatrixProjection

NUM_PROBES = 16  # random vectors that two halves of a sample are compared by


@dataclass(frozen=True)
class KFAC(Correction):
    """A and S by their eigenvectors, one a column, and eigenvalues."""

    names: ClassVar[tuple[str, ...]] = ("input_basis", "input_values", "output_basis", "output_values")

    input_basis: Float[Tensor, "n n"]
    input_values: Float[Tensor, " n"]
    output_basis: Float[Tensor, "m m"]
    output_values: Float[Tensor, " m"]

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        shape = len(self.output_values), len(self.input_values)
        S = inverse_root(self.output_basis, self.output_values, left, damping=floors.factor_damping)
        A = inverse_root(self.input_basis, self.input_values, right, damping=floors.factor_damping)
        return MatrixProjection(module, shape, S.float(), A.float())

    @property
    def kronecker(self) -> "KFAC":
        """The factors that axes are taken of."""
        return self

    def axis_scales(self, *, damping: float) -> Float[Tensor, "m n"]:
        """Return (s + ε_S)^-½ (a + ε_A)^-½ of every axis of the eigenbasis, in float64."""
        s, a = ((v + damping * v.mean()).rsqrt() for v in (self.output_values.double(), self.input_values.double()))
        return torch.outer(s, a)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "KFAC":
        return cls(**{name: tensors[name] for name in cls.names})


def inverse_root(
    basis: Float[Tensor, "n n"], values: Float[Tensor, " n"], rows: Float[Tensor, "k n"] | None, *, damping: float
) -> Float[Tensor, "_ n"]:
    """Return ``rows Q diag(1/√(a + ε)) Qᵀ`` in float64, ε = damping · mean(a); without rows, the root itself."""
    Q = basis.double()
    turned = Q if rows is None else rows.double() @ Q
    return (turned * (values + damping * values.mean()).rsqrt()) @ Q.T


class KroneckerTap:
    """Sums A and S of one matrix over batches, in float64; ``begin`` comes before each batch."""

    keeps_places = True  # of the tokens that an expert is given

    def __init__(self, matrix: WeightMatrix, *, device: torch.device) -> None:
        self.module, self.name, self._is_expert = matrix.module, matrix.name, matrix.expert is not None
        m, n = matrix.shape
        self._A, self._S = (torch.zeros(size, size, dtype=torch.float64, device=device) for size in (n, m))
        self._num_inputs = self._num_outputs = 0
        self._first_half: tuple[Tensor, Tensor, int, int] | None = None

    def begin(self, predicts: Bool[Tensor, "b t"]) -> None:
        """Say which tokens of the next batch predict one whose loss counts; no expert need be given any of them."""
        self._predicts = predicts
        self._num_outputs += int(predicts.sum())

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "_ n"]:
        x = activations[self._predicts]
        return x[(x != 0).any(1)] if self._is_expert else x

    def receive(self, kept: Float[Tensor, "_ n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        x, delta = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (kept, output_gradients[self._predicts]))
        self._A += x.T @ x
        self._S += delta.T @ delta
        self._num_inputs += len(x)

    def half(self) -> None:
        """Say that half of the sample has been seen."""
        self._first_half = (*self._probed(), self._num_inputs, self._num_outputs)

    def factors(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "m m"]] | None:
        """Return A and S, or None where the matrix saw no token."""
        return (self._A / self._num_inputs, self._S / self._num_outputs) if self._num_inputs else None

    def differences(self) -> tuple[float, float] | None:
        """Return ‖A₁ − A₂‖ / ‖A‖ of the two halves, and the same of S, as random vectors see them (Frobenius norm).

        None where a half has no token of this matrix.
        """
        assert self._first_half is not None, "a tap is told when half of the sample has been seen"
        *first, num_inputs, num_outputs = self._first_half
        counts = ((num_inputs, self._num_inputs), (num_outputs, self._num_outputs))
        if any(not 0 < half < whole for half, whole in counts):
            return None
        A, S = (
            difference(one, both, half / whole)
            for one, both, (half, whole) in zip(first, self._probed(), counts, strict=True)
        )
        return A, S

    def _probed(self) -> tuple[Tensor, Tensor]:
        return probed(self._A), probed(self._S)


def decomposed(A: Float[Tensor, "n n"], S: Float[Tensor, "m m"]) -> KFAC:
    """Return the eigenvectors (float32) and eigenvalues (float64) of both factors.

    Raises:
        ValueError: A factor is zero or not finite.
    """
    return KFAC(*eigenvectors(A, what="A, of its inputs,"), *eigenvectors(S, what="S, of its output gradients,"))


def eigenvectors(factor: Float[Tensor, "n n"], *, what: str) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    """Return the eigenvectors (float32), one a column, and eigenvalues (float64) of a factor.

    Raises:
        ValueError: It is zero or not finite; ``what`` it is of is said.
    """
    mean = factor.diagonal().mean().item()
    if not 0 < mean < float("inf"):
        raise ValueError(
            f"the mean eigenvalue of {what} is {mean}; it must be positive and finite: take another sample, or no "
            "correction"
        )
    values, vectors = torch.linalg.eigh(factor)
    return vectors.float().cpu(), values.clamp(min=0).cpu()


def shared(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "m m"]]:
    """Return the mean A and S of some experts, for one that saw no token of the sample."""
    A, S = (sum(parts) / len(factors) for parts in zip(*factors, strict=True))
    return A, S


def probed(factor: Float[Tensor, "n n"]) -> Float[Tensor, "n p"]:
    """Return M v of random signs v: E ‖M v‖² = ‖M‖² in the Frobenius norm."""
    signs = torch.randint(0, 2, (len(factor), NUM_PROBES), generator=torch.Generator().manual_seed(0))
    return factor @ (2.0 * signs.double() - 1).to(factor.device)


def difference(first: Tensor, both: Tensor, share: float) -> float:
    """Return that of two halves' means, from the sum over the first, the sum over both, and the share of the first."""
    one, other = first / share, (both - first) / (1 - share)
    return ((one - other).norm() / both.norm()).item()
