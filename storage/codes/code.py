"""What a way of storing rows has to say of itself.

rows    [n d] float32   what was computed
stored  [n w]           what lies on disk: w items of the code's dtype, each row whole in one chunk
scales  [n] float32     what a row is to be multiplied by when it is read, where the code keeps one
"""

from collections.abc import Callable
from dataclasses import dataclass

from numpy import ndarray

SCALE_BYTES = 4


@dataclass(frozen=True)
class Code:
    """One way of storing the rows of a block.

    Attributes:
        name: What ``--store-as`` calls it.
        dtype: Of what is stored.
        has_scales: Whether a row has a scale beside it, one a block.
        width: Items that a row of d dimensions takes.
        encode: Rows to what is stored, and their scales or None.
        decode: What is stored, and its scales, into a float32 buffer [n d].
        item_bytes: Of one item.
        is_plain: Whether what is stored is the rows themselves, so that reading needs no copy.
    """

    name: str
    dtype: str
    has_scales: bool
    width: Callable[[int], int]
    encode: Callable[[ndarray], tuple[ndarray, ndarray | None]]
    decode: Callable[[ndarray, ndarray | None, ndarray], None]
    item_bytes: int
    is_plain: bool = False

    def row_bytes(self, num_dims: int) -> int:
        """Bytes of a row of a block, its scale included."""
        return self.width(num_dims) * self.item_bytes + (SCALE_BYTES if self.has_scales else 0)
