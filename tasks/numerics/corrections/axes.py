"""The axes of the whitened eigenbasis in which gradients vary most: no projection, and no random numbers.

    t = (Q_Sᵀ G Q_A) ∘ scale    [m n]    scale: (Λ + damping · mean Λ)^-½ of EK-FAC,
                                                (s + ε_S)^-½ (a + ε_A)^-½ of K-FAC
    J = the M indices, over all matrices together, with the largest mean of t_j² over examples under their own labels
    kept: t_J

Of Q_S and Q_A only the columns that J names are turned by. A block keeps the best of its axes in any case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from trackstar.tasks.numerics.corrections.correction import Correction, Floors
from trackstar.tasks.numerics.corrections.kfac import KFAC
from trackstar.tasks.numerics.gradients import MatrixProjection


@dataclass(frozen=True)
class Axes(Correction):
    """Both eigenbases, and of the axes that are kept their indices in [m n], ascending, and scales."""

    names: ClassVar[tuple[str, ...]] = (*KFAC.names, "indices", "scales")

    factors: KFAC
    indices: Int[Tensor, " M"]
    scales: Float[Tensor, " M"]

    def projection(
        self, module: str, left: Float[Tensor, "k m"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        Q_S, Q_A = self.factors.output_basis, self.factors.input_basis
        rows, row_of = (self.indices // len(Q_A)).unique(return_inverse=True)
        columns, column_of = (self.indices % len(Q_A)).unique(return_inverse=True)
        return MatrixProjection(
            module,
            (len(Q_S), len(Q_A)),
            Q_S.T[rows].contiguous(),
            Q_A.T[columns].contiguous(),
            axes=row_of * len(columns) + column_of,
            axis_scales=self.scales,
        )

    def tensors(self) -> dict[str, Tensor]:
        return {**self.factors.tensors(), "indices": self.indices, "scales": self.scales}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Axes":
        return cls(KFAC.from_tensors(tensors), tensors["indices"], tensors["scales"])


def choose_axes(
    variances: Sequence[Float[ndarray, "_ _"]], *, blocks: Sequence[str], num_axes: int
) -> list[Int[ndarray, " _"]]:
    """Return the indices, ascending, of the axes of each matrix that are kept; of equal ones the first come first.

    Args:
        variances: Mean t² of every axis of every matrix.
        blocks: The block of each matrix.
        num_axes: M, of all matrices together; all axes where there are fewer.

    Raises:
        ValueError: There are more blocks than axes to keep.
    """
    if num_axes < len(set(blocks)):
        raise ValueError(
            f"{num_axes} axes are to be kept of {len(set(blocks))} blocks; keep at least one a block, or make fewer "
            "blocks"
        )
    best = [np.argsort(-of.ravel(), kind="stable")[:num_axes] for of in variances]
    owners = np.repeat(np.arange(len(best)), [len(of) for of in best])
    values = np.concatenate([of.ravel()[own] for of, own in zip(variances, best, strict=True)])
    order = np.argsort(-values, kind="stable")
    _, firsts = np.unique(np.asarray(blocks)[owners[order]], return_index=True)
    kept = np.concatenate([order[firsts], np.delete(order, firsts)[: num_axes - len(firsts)]])
    indices = np.concatenate(best)
    return [np.sort(indices[kept[owners[kept] == matrix]]) for matrix in range(len(variances))]
