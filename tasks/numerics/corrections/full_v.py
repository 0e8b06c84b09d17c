"""Division by √V, element by element, as Adam keeps V: nothing of it folds into L and R.

L (G ⊙ 1/√V) Rᵀ        G is formed, a few examples at a time
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.corrections.correction import ElementwiseCorrection, Floors
from trackstar.tasks.numerics.gradients import MatrixProjection
from trackstar.tasks.numerics.second_moment import FullSecondMoment, inverse_root


@dataclass(frozen=True)
class FullV(ElementwiseCorrection):
    """V, element by element."""

    names: ClassVar[tuple[str, ...]] = ("values",)

    V: FullSecondMoment

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        return MatrixProjection(module, self.V.shape, left, right, self.scale(floors=floors))

    def scale(self, *, floors: Floors) -> Float[Tensor, "m n"]:
        return inverse_root(self.V, epsilon=floors.epsilon).float()

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.V.values}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FullV":
        return cls(FullSecondMoment(tensors["values"]))
