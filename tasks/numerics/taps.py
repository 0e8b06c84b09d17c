"""One backward pass without weight gradients, in which chosen layers hand over their inputs and output gradients.

    x_t  [n]  input of a linear layer at token t        δ_t  [m]  gradient of the summed loss at its output
    G = Σ_t δ_t x_tᵀ                                    what the weight gradient of one example would be

No parameter requires a gradient, so the backward pass computes activation gradients only, and none before the first
tapped layer's output, where the graph starts. The head is no layer: the loss
calls it, and hands over its part. Experts have no module of their own: theirs run one after another while
they are tapped (experts.py).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trackstar.tasks.numerics.experts import Receiver, TappedExperts, starts_graph
from trackstar.tasks.numerics.labels import Labels
from trackstar.tasks.numerics.linear_maps import first_result
from trackstar.tasks.numerics.loss import TokenLoss


@runtime_checkable
class Tap(Receiver, Protocol):
    """A receiver at one linear layer, or at one expert."""

    module: str


class TappedModel:
    """A frozen model in evaluation mode whose layers are tapped while it is used as a context manager."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        self._model = model.eval().requires_grad_(False)
        modules = dict(model.named_modules())
        head = [tap for tap in taps if modules.get(tap.module) is model.get_output_embeddings() is not None]
        self._loss = TokenLoss(model, head_tap=head[0] if head else None)
        by_hand = head if self._loss.is_chunked else []  # else it is a module like others
        self._taps = [tap for tap in taps if tap.module in modules and tap not in by_hand]
        self._experts = _tapped_experts(model, [tap for tap in taps if tap.module not in modules])
        self._is_tapped = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._num_rows = 0

    def __enter__(self) -> "TappedModel":
        self._is_tapped = True
        for tap in self._taps:
            module = self._model.get_submodule(tap.module)
            if type(module).forward not in (nn.Linear.forward, Conv1D.forward):
                self._handles.append(module.register_forward_pre_hook(_start_graph_before))
            self._handles.append(module.register_forward_hook(self._hook(tap)))
        for experts in self._experts:
            experts.install(lambda: self._num_rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_tapped = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for experts in self._experts:
            experts.remove()

    def backward(
        self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"], *, labels: Labels | None = None
    ) -> Float[Tensor, " b"]:
        """Run one batch, padded on the right; return each row's loss summed over its chosen tokens, or labels there."""
        assert self._is_tapped, "a tapped model is used inside its context"
        self._num_rows = len(tokens)
        with torch.enable_grad():
            return self._loss.backward(tokens, chosen, labels=labels)

    def _hook(self, tap: Tap):
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple) -> Tensor | tuple:
            # Some layers see [b·t n]; rows are consecutive there, so both views are the same memory.
            rows = self._num_rows
            kept = tap.keep(inputs[0].detach().reshape(rows, -1, inputs[0].shape[-1]))
            result = first_result(output)
            if not result.requires_grad:
                result = result.detach().requires_grad_()
                output = result.clone()  # a layer may write into what it gets, which it could not into a leaf
            result.register_hook(lambda gradient: tap.receive(kept, gradient.reshape(rows, -1, gradient.shape[-1])))
            return output

        return forward


def _start_graph_before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For a module of several results: all of them have to depend on the first."""
    return (starts_graph(inputs[0]), *inputs[1:])


def _tapped_experts(model: nn.Module, taps: Sequence[Tap]) -> list[TappedExperts]:
    """Taps at MODULE.PARAMETER.EXPERT, one object for each module."""
    by_module: dict[str, dict[tuple[str, int], Tap]] = {}
    for tap in taps:
        path, parameter, expert = tap.module.rsplit(".", 2)
        by_module.setdefault(path, {})[parameter, int(expert)] = tap
    return [TappedExperts(model.get_submodule(path), members) for path, members in by_module.items()]
