"""int8: a quarter of the bytes; each row is rounded to 255 steps between its own extremes."""

import numpy as np
from numpy import ndarray

from trackstar.storage.codes.code import Code

STEPS = 127


def encode(rows: ndarray) -> tuple[ndarray, ndarray]:
    """Return the rows in steps of their largest magnitude / 127, and that step."""
    scales = (np.abs(rows).max(axis=1, initial=0) / STEPS).astype(np.float32)
    scales[scales == 0] = 1.0
    return np.rint(rows / scales[:, None]).clip(-STEPS, STEPS).astype(np.int8), scales


def decode(stored: ndarray, scales: ndarray, out: ndarray) -> None:
    """Widen the rows and multiply them by their steps."""
    import torch  # here: settings name the codes, and are read before anything is loaded

    torch.from_numpy(out).copy_(torch.from_numpy(stored)).mul_(torch.from_numpy(scales)[:, None])


INT8 = Code("int8", "int8", has_scales=True, width=lambda d: d, encode=encode, decode=decode, item_bytes=1)
