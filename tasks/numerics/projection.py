"""The two-sided random projection of one matrix's gradient.

    G  [m n]  gradient of a weight matrix
    L  [k m]  left projection, entries N(0, 1/k)
    R  [k n]  right projection, entries N(0, 1/k)
    L G Rᵀ    [k k]  projected gradient: inner products are preserved in expectation

Chang et al. 2024, Section 3 ("random projection"). Each of L and R depends on (seed, matrix name, side) alone, so
that no order, batch, device or thread count can change it, and a query meets the same P as the corpus did.
"""

import hashlib
import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Side = Literal["left", "right"]


def gaussian_projection(
    *, seed: int, matrix_name: str, side: Side, projection_dim: int, input_dim: int
) -> Float[Tensor, "k n"]:
    """Return the [projection_dim, input_dim] matrix with entries N(0, 1/projection_dim)."""
    key = hashlib.sha256(f"{seed}/{matrix_name}/{side}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8")))
    entries = generator.standard_normal((projection_dim, input_dim)) / math.sqrt(projection_dim)
    return torch.from_numpy(entries.astype(np.float32))
