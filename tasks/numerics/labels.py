"""Labels drawn from the model itself: what makes the mean of δ δᵀ that of the Fisher matrix.

    z  [v]  logits of one prediction        E_i  exponential random numbers        label = argmin_i E_i exp(−z_i)

That index has the probability softmax(z)_i (the Gumbel-max trick). The E of a prediction depend on the seed, the
document's tokens and the position alone, so that neither order nor company changes a label, and rounding of z changes
one about as rarely as it is small.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt
from numpy import ndarray
from torch import Tensor

from trackstar.tasks.numerics.batching import Window

Labels = Callable[[Float[Tensor, "T v"], Int[Tensor, "T 2"]], Int[Tensor, " T"]]  # from logits, row and position


def sampled_labels(batch: Sequence[Window], sequences: Sequence[Sequence[int]], *, seed: int) -> Labels:
    """Return what draws the labels of one batch of windows.

    Args:
        batch: One window a row.
        sequences: Token ids of the documents that the windows are of.
        seed: Of the random numbers.
    """
    keys = {window.document: document_key(seed, sequences[window.document]) for window in batch}

    def draw(logits: Float[Tensor, "T v"], places: Int[Tensor, "T 2"]) -> Int[Tensor, " T"]:
        noise = np.empty(tuple(logits.shape))
        for index, (row, position) in enumerate(places.tolist()):
            window = batch[row]
            noise[index] = exponentials(keys[window.document], position=window.start + position, size=logits.shape[1])
        return (logits.double() - torch.from_numpy(noise).log().to(logits.device)).argmax(1)

    return draw


def document_key(seed: int, tokens: Sequence[int]) -> UInt[ndarray, "2"]:
    """Return what the random numbers of a document are drawn by."""
    content = np.asarray(tokens, dtype="<i8").tobytes()
    return np.frombuffer(hashlib.sha256(f"{seed}/".encode() + content).digest()[:16], dtype="<u8")


def exponentials(key: UInt[ndarray, "2"], *, position: int, size: int) -> Float[ndarray, " v"]:
    """Return E of the token at one position of a document."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, position, 0])).standard_exponential(size)
