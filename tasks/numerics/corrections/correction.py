"""What a matrix's gradient is multiplied by before it is projected: the interface that each file of this folder fills.

    G  [m n]  gradient of one matrix            L  [k m], R  [k n]  its projection
    ε         floor of √V, relative             δ                   damping of Kronecker factors, relative

A correction folds into L and R what it can. What it cannot is a scale [m n] that the formed G is multiplied by.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from trackstar.tasks.numerics.gradients import MatrixProjection


@dataclass(frozen=True)
class Floors:
    """What keeps a division finite.

    Attributes:
        epsilon: ε, relative to the root of V's mean.
        factor_damping: δ, relative to the mean eigenvalue of a Kronecker factor.
    """

    epsilon: float
    factor_damping: float


class Correction(ABC):
    """The correction of one matrix, as it is kept on disk; how it is damped is said where it is used.

    Attributes:
        names: Of the tensors that are kept of it.
    """

    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        """Return how a gradient is corrected, then projected by L and R; without them it stays whole."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept on disk, by ``names``."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Correction":
        """Return the correction that these tensors were kept of.

        Raises:
            ValueError: They are no correction.
        """


class ElementwiseCorrection(Correction):
    """A correction that multiplies G element by element, as an optimizer's step does."""

    @abstractmethod
    def scale(self, *, floors: Floors) -> Float[Tensor, "m n"]:
        """Return what G is multiplied by, in float32."""
