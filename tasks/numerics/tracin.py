"""TracIn: how much a step on one example changes another's loss, summed over checkpoints.

    g_c(z)  [d]  gradient of the summed loss at checkpoint c, a block a part

    grad_dot     Σ_c g_c(m) · g_c(q)
    grad_cosine  Σ_c g_c(m) · g_c(q) / (‖g_c(m)‖ ‖g_c(q)‖)

Pruthi et al. 2020, Eq. 4 (TracInCP), with the same learning rate at every checkpoint, which scales all scores alike if
there is one. The cosine is the variant that keeps long or surprising documents from leading every ranking.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def gradient_products(
    candidates: Sequence[Float[ndarray, "n _"]], queries: Sequence[Float[ndarray, "q _"]], *, unit_norm: bool
) -> Float[ndarray, "n q"]:
    """Return the dot products, or cosines, of gradients given block by block; float64.

    Args:
        candidates: One array a block.
        queries: Likewise.
        unit_norm: Whether to divide by both norms, taken over all blocks.
    """
    products = sum(g.astype(np.float64) @ h.astype(np.float64).T for g, h in zip(candidates, queries, strict=True))
    return products / np.outer(_norms(candidates), _norms(queries)) if unit_norm else products


def _norms(blocks: Sequence[Float[ndarray, "n _"]]) -> Float[ndarray, " n"]:
    return np.sqrt(sum(np.einsum("nd,nd->n", block, block, dtype=np.float64) for block in blocks))
