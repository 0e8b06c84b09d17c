"""A second moment estimated from a sample of examples, for a checkpoint that kept no optimizer state."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, accumulate_estimate, estimate


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
