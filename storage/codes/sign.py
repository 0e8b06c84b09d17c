"""sign: one bit a coordinate, and one scale a row and block.

    b_j = 1 where t_j > 0, else -1        s = ‖t‖₁ / d        t ≈ s b

Of all multiples of b, s b is the nearest to t. Bits lie eight to a byte, the first in the lowest. It loses little of
gradients that were whitened before they were projected, and much of others (``docs/math.md``).
"""

import numpy as np
from numpy import ndarray

from trackstar.storage.codes.code import Code

BITS = 8


def width(num_dims: int) -> int:
    """Bytes of a row: the last one is filled up with zeros."""
    return -(-num_dims // BITS)


def encode(rows: ndarray) -> tuple[ndarray, ndarray]:
    """Return the signs, packed, and the mean magnitudes; a row of zeros has the scale 0."""
    scales = np.abs(rows).mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.packbits(rows > 0, axis=1, bitorder="little"), scales


def decode(stored: ndarray, scales: ndarray, out: ndarray) -> None:
    """Unpack the bits and give them their scales: s (2 bit - 1)."""
    import torch  # here: settings name the codes, and are read before anything is loaded

    bits = torch.from_numpy(np.unpackbits(stored, axis=1, count=out.shape[1], bitorder="little"))
    step = torch.from_numpy(scales)[:, None]
    torch.from_numpy(out).copy_(bits).mul_(2 * step).sub_(step)


SIGN = Code("sign", "uint8", has_scales=True, width=width, encode=encode, decode=decode, item_bytes=1)
