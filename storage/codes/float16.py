"""float16: half the bytes, eleven bits of each number.

A gradient's size varies over many orders of magnitude, more than float16 holds, so each stored row has root mean
square 1 and its scale beside it.
"""

import numpy as np
from numpy import ndarray

from trackstar.storage.codes.code import Code


def encode(rows: ndarray) -> tuple[ndarray, ndarray]:
    """Return the rows divided by their root mean square, and that."""
    scales = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1)).astype(np.float32)
    scales[scales == 0] = 1.0
    return (rows / scales[:, None]).astype(np.float16), scales


def decode(stored: ndarray, scales: ndarray, out: ndarray) -> None:
    """Widen the rows and multiply them by their scales; torch widens several times as fast as numpy."""
    import torch  # here: settings name the codes, and are read before anything is loaded

    torch.from_numpy(out).copy_(torch.from_numpy(stored)).mul_(torch.from_numpy(scales)[:, None])


FLOAT16 = Code("float16", "float16", has_scales=True, width=lambda d: d, encode=encode, decode=decode, item_bytes=2)
