"""Division by √V where V = r cᵀ / mean(r): it folds into L and R whole.

    L (G ⊙ 1/√V) Rᵀ = (L diag(√(mean(r)/r))) G (R diag(1/√c))ᵀ

The factors are the optimizer's, or estimated from a sample of examples for a checkpoint that kept none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections.correction import ElementwiseCorrection, Floors
from trackstar.tasks.numerics.gradients import MatrixProjection
from trackstar.tasks.numerics.second_moment import (
    FactoredSecondMoment,
    FullSecondMoment,
    accumulate_estimate,
    dense,
    estimate,
    folded_scales,
    inverse_root,
)


@dataclass(frozen=True)
class FactoredV(ElementwiseCorrection):
    """V by its row and column factors."""

    names: ClassVar[tuple[str, ...]] = ("row", "column")

    V: FactoredSecondMoment

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        if left is None:
            return MatrixProjection(module, self.V.shape, scale=self.scale(floors=floors))
        row_scale, column_scale = folded_scales(self.V, epsilon=floors.epsilon)
        return MatrixProjection(module, self.V.shape, (left * row_scale).float(), (right * column_scale).float())

    def scale(self, *, floors: Floors) -> Float[Tensor, "m n"]:
        return inverse_root(FullSecondMoment(dense(self.V)), epsilon=floors.epsilon).float()

    def tensors(self) -> dict[str, Tensor]:
        return {"row": self.V.row, "column": self.V.column}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FactoredV":
        return cls(FactoredSecondMoment(tensors["row"], tensors["column"]))


class EstimationTap:
    """Sums one matrix's squared per-example gradients by row and by column; see second_moment.py."""

    def __init__(self, matrix: WeightMatrix, *, device: torch.device) -> None:
        self.module, self.name = matrix.module, matrix.name
        self._row_sum = torch.zeros(matrix.shape[0], dtype=torch.float64, device=device)
        self._column_sum = torch.zeros(matrix.shape[1], dtype=torch.float64, device=device)

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        return activations

    def receive(self, kept: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        accumulate_estimate(self._row_sum, self._column_sum, output_gradients=output_gradients, activations=kept)

    def result(self, *, num_examples: int) -> FactoredSecondMoment:
        return estimate(self._row_sum.cpu(), self._column_sum.cpu(), num_examples=num_examples)


def estimation_taps(matrices: Sequence[WeightMatrix], *, device: torch.device) -> list[EstimationTap]:
    return [EstimationTap(matrix, device=device) for matrix in matrices]
