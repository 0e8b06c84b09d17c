"""Every correction there is, and how those of a model are kept: one flat dictionary of tensors, ``MATRIX.NAME``.

A new correction is a file of this folder and a line below.
"""

from collections.abc import Mapping

from torch import Tensor

from trackstar.tasks.numerics.corrections.axes import Axes
from trackstar.tasks.numerics.corrections.correction import Correction
from trackstar.tasks.numerics.corrections.diagonal_kfac import DiagonalKFAC
from trackstar.tasks.numerics.corrections.ekfac import EKFAC
from trackstar.tasks.numerics.corrections.factored_v import FactoredV
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.corrections.kfac import KFAC
from trackstar.tasks.numerics.corrections.none import Uncorrected

CORRECTIONS: tuple[type[Correction], ...] = (Uncorrected, FactoredV, FullV, KFAC, EKFAC, Axes, DiagonalKFAC)


def to_tensors(corrections: Mapping[str, Correction]) -> dict[str, Tensor]:
    """Return what is kept of the corrections of some matrices."""
    return {
        f"{matrix}.{name}": tensor
        for matrix, correction in corrections.items()
        for name, tensor in correction.tensors().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Correction]:
    """Return the correction of every matrix: the one whose tensors are there.

    Raises:
        ValueError: The tensors of a matrix are those of no correction.
    """
    by_matrix: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        matrix, _, name = key.rpartition(".")
        by_matrix.setdefault(matrix, {})[name] = tensor
    return {matrix: _kind(matrix, own).from_tensors(own) for matrix, own in by_matrix.items()}


def _kind(matrix: str, tensors: Mapping[str, Tensor]) -> type[Correction]:
    for kind in CORRECTIONS:
        if set(kind.names) == tensors.keys():
            return kind
    raise ValueError(f"{matrix} has the tensors {', '.join(tensors)}, which no correction keeps; estimate it again")
