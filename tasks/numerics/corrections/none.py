"""No correction: gradients as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.corrections.correction import ElementwiseCorrection, Floors
from trackstar.tasks.numerics.gradients import MatrixProjection


@dataclass(frozen=True)
class Uncorrected(ElementwiseCorrection):
    """G itself."""

    names: ClassVar[tuple[str, ...]] = ()

    shape: tuple[int, int]

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        return MatrixProjection(module, self.shape, left, right)

    def scale(self, *, floors: Floors) -> Float[Tensor, "m n"]:
        return torch.ones(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Uncorrected":
        raise ValueError("a matrix without a correction has no tensors; read those of another correction")
