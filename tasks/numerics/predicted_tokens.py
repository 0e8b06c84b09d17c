"""Which predicted tokens of a document carry its score: what the model learnt from each of them alone.

    φ_t  [d]    projected gradient of the loss of predicted token t alone; a document's is φ = Σ_t φ_t
    w    [d]    what a query reads a candidate's vector with: R^-1 φ_q, over both norms
    D    [m n]  S ⊙ (Lᵀ w R), the same direction in the space of one weight matrix
    ẏ           tangent of an activation y: how it moves when every matrix A moves to A + ε D

    share_t = <φ_t, w> = d/dε loss_t(θ + ε D)

One forward pass that carries tangents along has the shares of all tokens: ẏ = A ẋ + D x at a matrix, and in the end
∂loss_t/∂h_t · ḣ_t. Of a projected matrix D is never formed: D x = Lᵀ (w (R x)). The shares of all tokens add up to the
score.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.gradients import BlockProjection, MatrixProjection
from trackstar.tasks.numerics.loss import TokenLoss
from trackstar.tasks.numerics.unembedding import UNEMBEDDING


class PredictedTokens:
    """Reads the predicted tokens of a batch along the direction of one query.

    Args:
        model: In evaluation mode; it is left as it was.
        matrices: The weight matrices of each block, in the order of its projection.
        blocks: Their projections.
    """

    def __init__(
        self,
        model: nn.Module,
        matrices: Mapping[str, Sequence[WeightMatrix]],
        blocks: Mapping[str, BlockProjection],
    ) -> None:
        self._model, self._loss = model, TokenLoss(model)
        self._parts = [
            _Part(name, share, matrix, projection)
            for name, block in blocks.items()
            for matrix, projection, share in zip(matrices[name], block.matrices, block.slices(), strict=True)
        ]

    @torch.no_grad()
    def __call__(
        self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"], readout: Mapping[str, Float[Tensor, " d"]]
    ) -> Float[Tensor, "b t"]:
        """Return every chosen token's share in its row's <φ, w>, in float64, and 0 for all other tokens.

        Args:
            tokens: Token ids, padded on the right.
            chosen: The tokens whose losses make up φ.
            readout: w of every block.

        Raises:
            NotImplementedError: The unembedding is among the matrices: the loss applies it outside of the model.
        """
        if any(part.matrix.kind == UNEMBEDDING for part in self._parts):
            raise NotImplementedError(f"{UNEMBEDDING} has no forward-mode share; take a gradient a token")
        # only the plain attention kernel carries tangents
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), self._moving(readout) as run:
            return self._loss.slopes(tokens, chosen, run)

    @contextmanager
    def _moving(self, readout: Mapping[str, Tensor]) -> Iterator[Callable[..., object]]:
        """Let the matrices move: plain linear maps by what they return, routers and experts by their weights."""
        tangents: dict[int, Tensor] = {}
        handles = []
        for part in self._parts:
            w = readout[part.block][part.share]
            module = _plain_linear(self._model, part.matrix)
            if module is not None:
                handles.append(module.register_forward_hook(_moved(part.projection, w)))
                continue
            parameter = self._model.get_parameter(part.matrix.parameter)
            tangent = tangents.setdefault(id(parameter), torch.zeros_like(parameter))
            part.matrix.part_of(tangent).copy_(direction(part.projection, w))

        def run(module: nn.Module, **inputs: object) -> object:
            duals = {
                name: forward_ad.make_dual(parameter.detach(), tangents[id(parameter)])
                for name, parameter in module.named_parameters()
                if id(parameter) in tangents
            }
            return functional_call(module, duals, kwargs=inputs)

        try:
            yield run
        finally:
            for handle in handles:
                handle.remove()


class _Part:
    """One matrix, its projection, and its share of its block's vector."""

    def __init__(self, block: str, share: slice, matrix: WeightMatrix, projection: MatrixProjection) -> None:
        self.block, self.share, self.matrix, self.projection = block, share, matrix, projection


def direction(projection: MatrixProjection, w: Float[Tensor, " d"]) -> Float[Tensor, "m n"]:
    """Return D = Uᵀ (S ⊙ (Lᵀ w R)) W, so that <φ(G), w> = <G, D> for every G; L, R, S, U and W where there are any."""
    D = _spread(projection, w).to(torch.promote_types(w.dtype, torch.float32))
    if projection.left is not None:
        D = projection.left.to(D.dtype).T @ D @ projection.right.to(D.dtype)
    if projection.scale is not None:
        D = D * projection.scale.to(D.dtype)
    if projection.left_turn is not None:
        D = projection.left_turn.to(D.dtype).T @ D @ projection.right_turn.to(D.dtype)
    return D


def _spread(projection: MatrixProjection, w: Float[Tensor, " d"]) -> Float[Tensor, "p q"]:
    """w as a matrix; where only some axes are kept, it is zero at all others."""
    shape = projection.shape if projection.left is None else (len(projection.left), len(projection.right))
    if projection.axes is None:
        return w.view(shape)
    spread = w.new_zeros(shape)
    spread.view(-1)[projection.axes] = w * projection.axis_scales.to(w.dtype)
    return spread


def _moved(projection: MatrixProjection, w: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    D = None if projection.is_separable else direction(projection, w)

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, (y, y_dot) = forward_ad.unpack_dual(inputs[0]).primal, forward_ad.unpack_dual(output)
        if D is None:
            L, R = projection.left.to(x.dtype), projection.right.to(x.dtype)
            # D x = Lᵀ (w (R x))
            added = (x @ R.T) @ _spread(projection, w).to(x.dtype).T @ L
        else:
            added = x @ D.to(x.dtype).T
        return forward_ad.make_dual(y, added if y_dot is None else y_dot + added)

    return hook


def _plain_linear(model: nn.Module, matrix: WeightMatrix) -> nn.Module | None:
    if matrix.expert is not None:
        return None
    module = model.get_submodule(matrix.module)
    return module if type(module).forward in (nn.Linear.forward, Conv1D.forward) else None
