"""One backward pass without weight gradients, in which chosen layers hand over their inputs and output gradients.

    x_t  [n]  input of a linear layer at token t        δ_t  [m]  gradient of the summed loss at its output
    G = Σ_t δ_t x_tᵀ                                    what the weight gradient of one example would be

No parameter requires a gradient, so the backward pass computes activation gradients only.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tasks.numerics.loss import TokenLoss


@runtime_checkable
class Tap(Protocol):
    """Sits at one linear layer. What ``keep`` returns in the forward pass comes back with the gradient."""

    module: str

    def keep(self, activations: Float[Tensor, "b t n"]) -> Tensor: ...

    def receive(self, kept: Tensor, output_gradients: Float[Tensor, "b t m"]) -> None: ...


class TappedModel:
    """A frozen model in evaluation mode whose layers are tapped while it is used as a context manager."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        self._model = model.eval().requires_grad_(False)
        self._taps = taps
        self._loss = TokenLoss(model)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._num_rows = 0

    def __enter__(self) -> "TappedModel":
        # Weights need no gradient, so the graph has to start at the embeddings.
        self._handles.append(self._model.get_input_embeddings().register_forward_hook(_start_graph))
        for tap in self._taps:
            self._handles.append(self._model.get_submodule(tap.module).register_forward_hook(self._hook(tap)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def backward(self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """Run one batch, padded on the right; return each row's loss summed over its chosen tokens."""
        assert self._handles, "a tapped model is used inside its context"
        self._num_rows = len(tokens)
        with torch.enable_grad():
            return self._loss.backward(tokens, chosen)

    def _hook(self, tap: Tap):
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Some layers see [b·t n]; rows are consecutive there, so both views are the same memory.
            kept = tap.keep(inputs[0].detach().reshape(self._num_rows, -1, inputs[0].shape[-1]))
            output.register_hook(lambda gradient: tap.receive(kept, gradient.reshape(*kept.shape[:2], -1)))

        return forward


def _start_graph(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
    return output.detach().requires_grad_()
