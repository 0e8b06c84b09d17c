"""The two-sided random projection of one matrix's gradient.

    G  [m n]  gradient of a weight matrix
    L  [k m]  left projection, entries N(0, 1/k)
    R  [k n]  right projection, entries N(0, 1/k)      or both with orthonormal rows, times √(n/k)
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
Rows = Literal["gaussian", "orthonormal"]


def random_projection(
    rows: Rows, *, seed: int, matrix_name: str, side: Side, projection_dim: int, input_dim: int
) -> Float[Tensor, "k n"]:
    """Return L or R; see the functions below."""
    draw = orthonormal_projection if rows == "orthonormal" else gaussian_projection
    return draw(seed=seed, matrix_name=matrix_name, side=side, projection_dim=projection_dim, input_dim=input_dim)


def gaussian_projection(
    *, seed: int, matrix_name: str, side: Side, projection_dim: int, input_dim: int
) -> Float[Tensor, "k n"]:
    """Return the [projection_dim, input_dim] matrix with entries N(0, 1/projection_dim)."""
    key = hashlib.sha256(f"{seed}/{matrix_name}/{side}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8")))
    entries = generator.standard_normal((projection_dim, input_dim)) / math.sqrt(projection_dim)
    return torch.from_numpy(entries.astype(np.float32))


def orthonormal_projection(
    *, seed: int, matrix_name: str, side: Side, projection_dim: int, input_dim: int
) -> Float[Tensor, "k n"]:
    """Return the Gaussian matrix with its rows made orthonormal and multiplied by √(n/k), so that E[PᵀP] = I as it was.

    With more rows than columns it is the columns that are orthonormal, and PᵀP = I: nothing is lost then.
    """
    draw = {"seed": seed, "matrix_name": matrix_name, "side": side}
    P = gaussian_projection(projection_dim=projection_dim, input_dim=input_dim, **draw).double().numpy()
    k, n = P.shape
    Q, upper = np.linalg.qr(P.T if k <= n else P)
    Q *= np.sign(np.diag(upper))  # of the two signs of a column the one that makes the factorisation unique
    return torch.from_numpy((math.sqrt(n / k) * Q.T if k <= n else Q).astype(np.float32))
