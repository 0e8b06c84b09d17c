"""Which tokens of a document carry its influence on a query: a score taken apart, exactly.

    φ_m = Σ_t (L δ_t)(R x_t)ᵀ        a candidate's vector in one matrix, one term a token
    w_q = R^-1 φ_q / (‖G_q‖ ‖G_m‖)   what a query reads a candidate's vector with
    score = <φ_m, w_q> = Σ_t (L δ_t)ᵀ W_q (R x_t) = Σ_t c_t

c_t is the share of token t as an input: the part of the gradient that flows through its position, which serves all
later predictions. Nothing is approximated; the shares of all tokens, summed over matrices, are the score.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from trackstar.tasks.numerics.gradients import BlockProjection, MatrixProjection, project
from trackstar.tasks.numerics.scores import QueryBasis
from trackstar.tasks.numerics.taps import TappedModel


def query_readout(
    basis: QueryBasis, queries: Sequence[int], *, mixing_weight: float
) -> tuple[Float[ndarray, "q d"], Float[ndarray, " q"]]:
    """Return R^-1 φ_q of some queries in one block, and their φ_qᵀ R^-1 φ_q there."""
    t = basis.coordinates[list(queries)]
    weights = 1 / (mixing_weight * basis.eigenvalues + 1 - mixing_weight)
    return (t * weights) @ basis.readout.T, t**2 @ weights


def candidate_norms(
    vectors: Float[ndarray, "n d"], psi_norms: Float[ndarray, " n"], basis: QueryBasis, *, mixing_weight: float
) -> Float[ndarray, " n"]:
    """Return φ_mᵀ R^-1 φ_m of candidates in one block, from their ‖ψ‖²."""
    t = vectors.astype(np.float64) @ basis.readout
    weights = 1 / (mixing_weight * basis.eigenvalues + 1 - mixing_weight)
    return np.maximum(psi_norms - np.sum(t**2, axis=1), 0.0) / (1 - mixing_weight) + t**2 @ weights


class TokenInfluence:
    """Reads the tokens of a batch with the readouts of some queries.

    Use it as a context manager: the model is tapped only inside.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, BlockProjection]) -> None:
        self._taps = [
            _TokenTap(name, matrix, share)
            for name, block in blocks.items()
            for matrix, share in zip(block.matrices, block.slices(), strict=True)
        ]
        self._model = TappedModel(model, self._taps)

    def __enter__(self) -> "TokenInfluence":
        self._model.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._model.__exit__(*exception)

    def __call__(
        self,
        tokens: Int[Tensor, "b t"],
        chosen: Bool[Tensor, "b t"],
        readouts: Mapping[str, Float[Tensor, "q d"]],
    ) -> Float[Tensor, "b t q"]:
        """Return the share of every token in its row's <φ, w_q>, in float64."""
        num_queries = len(next(iter(readouts.values())))
        total = torch.zeros(*tokens.shape, num_queries, dtype=torch.float64, device=tokens.device)
        for tap in self._taps:
            tap.readouts, tap.target = readouts[tap.block][:, tap.share].to(tokens.device), total
        self._model.backward(tokens, chosen)
        return total


class _TokenTap:
    """Adds (L δ_t)ᵀ W_q (R x_t) of one matrix for every token and query."""

    keeps_places = True  # of the tokens that an expert is given
    readouts: Float[Tensor, "q d"]
    target: Float[Tensor, "b t q"]

    def __init__(self, block: str, matrix: MatrixProjection, share: slice) -> None:
        self.module, self.block, self.share = matrix.module, block, share
        self._matrix = matrix

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        return activations

    def receive(self, kept: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        left, right = output_gradients, kept
        if self._matrix.is_separable:
            left, right = project(left, self._matrix.left), project(right, self._matrix.right)
        left, right = left.double(), right.double()
        for query, readout in enumerate(self.readouts):
            self.target[..., query] += ((left @ self._matrix_readout(readout)) * right).sum(-1)

    def receive_tokens(
        self, states: Float[Tensor, "T n"], delta: Float[Tensor, "T m"], places: Int[Tensor, "T 2"]
    ) -> None:
        """The same of some tokens of the head."""
        rows, positions = places.T
        whole = self.target
        self.target = torch.zeros(1, len(places), whole.shape[-1], dtype=whole.dtype, device=whole.device)
        self.receive(states[None], delta[None])
        whole[rows, positions] += self.target[0]
        self.target = whole

    def _matrix_readout(self, readout: Float[Tensor, " d"]) -> Float[Tensor, "_ _"]:
        """W [k k], zero but at the axes that are kept.

        Where δ and x stay whole, what it is for them: Uᵀ (S ⊙ (Lᵀ W R)) W' [m n].
        """
        matrix = self._matrix
        shape = matrix.shape if matrix.left is None else (len(matrix.left), len(matrix.right))
        if matrix.axes is not None:
            W = readout.new_zeros(shape, dtype=torch.float64)
            W.view(-1)[matrix.axes] = readout.double() * matrix.axis_scales.double()
            return W
        W = readout.double().view(shape)
        if matrix.is_separable:
            return W
        if matrix.left is not None:
            W = matrix.left.double().T @ W @ matrix.right.double()
        W = W if matrix.scale is None else W * matrix.scale.double()
        if matrix.left_turn is not None:
            W = matrix.left_turn.double().T @ W @ matrix.right_turn.double()
        return W
