"""Per-example projected gradients without ever forming a weight gradient.

    G    [m n]  Σ_t δ_t x_tᵀ, one example's gradient of one matrix (see taps.py)
    L    [k m]  left projection · diag(1/√V by row)        R  [k n]  right projection · diag(1/√V by column)

    L G Rᵀ = Σ_t (L δ_t)(R x_t)ᵀ    [k k]

Activations are projected in the forward pass and output gradients in the backward pass; one batched product per
matrix remains. What of a correction does not factor cannot be folded into L and R: then G is formed, a few examples
at a time, and multiplied element by element, in another basis where the correction turns it first. Where some axes of
such a basis are kept and nothing is projected, L and R hold its vectors, and the axes are read off L G Rᵀ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trackstar.tasks.numerics.taps import TappedModel

FORMED_GRADIENT_BYTES = 1 << 27


@dataclass(frozen=True)
class MatrixProjection:
    """How one matrix's gradient becomes its share of a block's vector: ``L ((U G Wᵀ) ⊙ S) Rᵀ``, or some elements of it.

    Attributes:
        module: Path of the module that owns the matrix.
        shape: (m, n).
        left: L [p m], or None for the identity.
        right: R [q n], or None for the identity.
        scale: S [m n], what of a correction is not folded into L and R, or None.
        left_turn: U [m m], or None for the identity; only beside a scale.
        right_turn: W [n n], or None for the identity; only beside a scale.
        axes: Which elements of the flattened ``L G Rᵀ`` are kept, or None for all; only without a scale.
        axis_scales: What those are multiplied by.
    """

    module: str
    shape: tuple[int, int]
    left: Float[Tensor, "p m"] | None = None
    right: Float[Tensor, "q n"] | None = None
    scale: Float[Tensor, "m n"] | None = None
    left_turn: Float[Tensor, "m m"] | None = None
    right_turn: Float[Tensor, "n n"] | None = None
    axes: Int[Tensor, " M"] | None = None
    axis_scales: Float[Tensor, " M"] | None = None

    def to(self, device: torch.device) -> "MatrixProjection":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})

    @property
    def num_dims(self) -> int:
        if self.axes is not None:
            return len(self.axes)
        return self.shape[0] * self.shape[1] if self.left is None else len(self.left) * len(self.right)

    @property
    def is_separable(self) -> bool:
        return self.left is not None and self.scale is None


@dataclass(frozen=True)
class BlockProjection:
    """The matrices of one block; pooled, their projected gradients add up, else they are concatenated."""

    matrices: Sequence[MatrixProjection]
    is_pooled: bool

    @property
    def num_dims(self) -> int:
        dims = [matrix.num_dims for matrix in self.matrices]
        return dims[0] if self.is_pooled else sum(dims)

    def slices(self) -> list[slice]:
        """Each matrix's share of the block's vector."""
        slices, start = [], 0
        for matrix in self.matrices:
            slices.append(slice(start, start + matrix.num_dims))
            start += 0 if self.is_pooled else matrix.num_dims
        return slices


def project(vectors: Float[Tensor, "b t d"], P: Float[Tensor, "k d"]) -> Float[Tensor, "b t k"]:
    """Return ``vectors Pᵀ``: in the precision of the vectors, and in float32 where that is float16.

    1/√V is part of P. It ranges over more powers of ten than float16 has, from one matrix to the next and, where a row
    was hardly ever trained, within one; bfloat16 has float32's range.
    """
    dtype = torch.float32 if vectors.dtype == torch.float16 else vectors.dtype
    return vectors.to(dtype) @ P.T.to(dtype)


class GradientEngine:
    """Computes, for a batch of token sequences, each block's projected gradient of each sequence's summed loss.

    Use it as a context manager: the model is tapped only inside.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, BlockProjection]) -> None:
        self.block_dims = {name: block.num_dims for name, block in blocks.items()}
        self._taps = [
            _GradientTap(name, matrix, share)
            for name, block in blocks.items()
            for matrix, share in zip(block.matrices, block.slices(), strict=True)
        ]
        self._model = TappedModel(model, self._taps)

    def __enter__(self) -> "GradientEngine":
        self._model.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._model.__exit__(*exception)

    def __call__(
        self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, " b"], dict[str, Float[Tensor, "b d"]]]:
        """Return the loss of each row, summed over its chosen tokens (float64), and each block's vectors (float32)."""
        vectors = {name: torch.zeros(len(tokens), dims, device=tokens.device) for name, dims in self.block_dims.items()}
        for tap in self._taps:
            tap.target = vectors[tap.block][:, tap.share]
        losses = self._model.backward(tokens, chosen)
        return losses, vectors


class _GradientTap:
    """Adds one matrix's projected gradients to its share of the block's vectors."""

    target: Float[Tensor, "b d"]

    def __init__(self, block: str, matrix: MatrixProjection, share: slice) -> None:
        self.module, self.block, self.share = matrix.module, block, share
        self._matrix = matrix

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t _"]:
        right = self._matrix.right if self._matrix.is_separable else self._matrix.right_turn
        return activations if right is None else project(activations, right)

    def receive(self, kept: Float[Tensor, "b t _"], output_gradients: Float[Tensor, "b t m"]) -> None:
        if self._matrix.axes is not None:
            self._receive_axes(kept, project(output_gradients, self._matrix.left))
        elif self._matrix.is_separable:
            left = project(output_gradients, self._matrix.left)
            self.target.view(len(left), left.shape[-1], -1).baddbmm_(left.float().mT, kept.float())
        else:
            self._receive_formed(kept, output_gradients)

    def receive_tokens(
        self, states: Float[Tensor, "T n"], delta: Float[Tensor, "T m"], places: Int[Tensor, "T 2"]
    ) -> None:
        """Take some tokens of the head, row by row: its outputs are too many to be held for a whole batch."""
        whole = self.target
        for row in places[:, 0].unique().tolist():
            own, self.target = places[:, 0] == row, whole[row : row + 1]
            self.receive(self.keep(states[own][None]), delta[own][None])
        self.target = whole

    def _receive_axes(self, right: Float[Tensor, "b t q"], left: Float[Tensor, "b t p"]) -> None:
        """Form L G Rᵀ [p q] of as many examples at a time as the memory bound allows, and read off the axes."""
        size = max(1, FORMED_GRADIENT_BYTES // (4 * left.shape[-1] * right.shape[-1]))
        for start in range(0, len(left), size):
            rows = slice(start, start + size)
            G = left[rows].float().mT @ right[rows].float()
            self.target[rows] += G.flatten(1)[:, self._matrix.axes] * self._matrix.axis_scales

    def _receive_formed(self, activations: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t m"]) -> None:
        """Form G [m n] of as many examples at a time as the memory bound allows."""
        m, n = self._matrix.shape
        if self._matrix.left_turn is not None:
            output_gradients = project(output_gradients, self._matrix.left_turn)
        size = max(1, FORMED_GRADIENT_BYTES // (4 * m * n))
        for start in range(0, len(self.target), size):
            rows = slice(start, start + size)
            G = output_gradients[rows].float().mT @ activations[rows].float()
            if self._matrix.scale is not None:
                G *= self._matrix.scale
            if self._matrix.left is not None:
                G = self._matrix.left @ (G @ self._matrix.right.T)
            self.target[rows] += G.flatten(1)
