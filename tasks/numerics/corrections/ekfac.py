"""EK-FAC: the eigenbases of K-FAC, and in them the gradient's own second moment instead of a product of eigenvalues.

    Λ = mean over examples of (Q_Sᵀ G Q_A)∘²                          [m n]
    G ↦ (Q_Sᵀ G Q_A) ∘ (Λ + damping · mean(Λ))^-½                     in the eigenbasis, where it stays

George et al. 2018. The turn folds into activations and output gradients; Λ does not, so G is formed. What is projected
is the vector of the eigenbasis: a Gaussian P is as good there as anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections.correction import Correction, Floors
from trackstar.tasks.numerics.corrections.kfac import KFAC
from trackstar.tasks.numerics.gradients import FORMED_GRADIENT_BYTES, MatrixProjection


@dataclass(frozen=True)
class EKFAC(Correction):
    """Both eigenbases and Λ."""

    names: ClassVar[tuple[str, ...]] = (*KFAC.names, "variances")

    kronecker: KFAC
    variances: Float[Tensor, "m n"]

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        scale = self.axis_scales(damping=floors.factor_damping).float()
        m, n = scale.shape
        turns = {
            "left_turn": self.kronecker.output_basis.T.contiguous(),
            "right_turn": self.kronecker.input_basis.T.contiguous(),
        }
        return MatrixProjection(module, (m, n), left, right, scale, **turns)

    def axis_scales(self, *, damping: float) -> Float[Tensor, "m n"]:
        """Return (Λ + damping · mean(Λ))^-½ in float64."""
        variances = self.variances.double()
        return (variances + damping * variances.mean()).rsqrt()

    def tensors(self) -> dict[str, Tensor]:
        return {**self.kronecker.tensors(), "variances": self.variances}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "EKFAC":
        return cls(KFAC.from_tensors(tensors), tensors["variances"])


class VarianceTap:
    """Sums (Q_Sᵀ G Q_A)∘² of one matrix over examples, in float64."""

    def __init__(self, matrix: WeightMatrix, factors: KFAC, *, device: torch.device) -> None:
        self.module, self.name = matrix.module, matrix.name
        self._right, self._left = factors.input_basis.to(device), factors.output_basis.to(device)
        self._sum = torch.zeros(matrix.shape, dtype=torch.float64, device=device)

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        return activations @ self._right.to(activations.dtype)

    def receive(self, kept: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        left = output_gradients @ self._left.to(output_gradients.dtype)
        size = max(1, FORMED_GRADIENT_BYTES // (4 * self._sum.numel()))
        for start in range(0, len(kept), size):
            rows = slice(start, start + size)
            self._sum += (left[rows].float().mT @ kept[rows].float()).square_().sum(0, dtype=torch.float64)

    def means(self, *, num_examples: int) -> Float[Tensor, "m n"]:
        """Return the mean of (Q_Sᵀ G Q_A)∘² in float64."""
        return self._sum.cpu() / num_examples

    def result(self, *, num_examples: int) -> Float[Tensor, "m n"]:
        """Return Λ in float32.

        Raises:
            ValueError: It is zero or not finite.
        """
        variances = self.means(num_examples=num_examples).float()
        mean = variances.mean(dtype=torch.float64).item()
        if not 0 < mean < float("inf"):
            raise ValueError(f"the mean of Λ is {mean}; it must be positive and finite: take another sample")
        return variances
