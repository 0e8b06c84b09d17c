"""Fused experts: many feed-forward networks in two parameters of three dimensions, taken apart into one matrix each.

    U  [E i n]  into each expert, gate and up stacked where there is a gate           D  [E n f]  out of each expert
    e  [T K]    the experts of a token            w  [T K]  their weights
    y_t = Σ_j w_tj D[e_tj] gate(U[e_tj] x_t)

transformers computes y by one of several kernels, the experts at once. Here it is one expert after another, so that
what goes into each matrix and the gradient at what comes out can be handed over, with the token they belong to.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from trackstar.tasks.numerics.linear_maps import FLOATING_POINT, NOT_UNDERSTOOD, agree, probe_values

DOWN, UP, GATE_UP = "down_proj", "up_proj", "gate_up_proj"
BIAS = "_bias"


@runtime_checkable
class Receiver(Protocol):
    """Takes what goes into a linear map and the gradient at what comes out.

    An expert's tokens come close together, wherever in their rows they are. A receiver with ``keeps_places`` gets them
    in their places instead, with zeros for those of other experts.
    """

    def keep(self, activations: Float[Tensor, "b t n"]) -> Tensor:
        """Called in the forward pass; what it returns comes back with the gradient."""

    def receive(self, kept: Tensor, output_gradients: Float[Tensor, "b t m"]) -> None:
        """Called in the backward pass."""


class FusedExperts:
    """The experts of one module, which states its layout as transformers' experts do.

    Attributes:
        parameters: Names of its parameters of three dimensions, U and D.
        is_transposed: Whether they are stored [E in out].
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = (GATE_UP if module.has_gate else UP, DOWN)
        self.is_transposed: bool = module.is_transposed
        self.num_experts = len(module.get_parameter(DOWN))

    def weight(self, name: str, expert: int) -> Float[Tensor, "m n"]:
        stored = self.module.get_parameter(name)[expert]
        return stored.T if self.is_transposed else stored

    def forward(
        self,
        x: Float[Tensor, "T n"],
        experts: Int[Tensor, "T K"],
        weights: Float[Tensor, "T K"],
        *,
        taps: Mapping[tuple[str, int], Receiver] | None = None,
        num_rows: int = 1,
    ) -> Float[Tensor, "T n"]:
        """Return y.

        Args:
            x: Tokens of all rows, one row after another.
            experts: As the router chose them.
            weights: As the router gave them.
            taps: By parameter and expert.
            num_rows: Rows of the batch, all of the same length; what a tap sees is split by row.
        """
        taps = taps or {}
        y = torch.zeros_like(x)
        for expert in experts[experts < self.num_experts].unique().tolist():
            token, slot = (experts == expert).nonzero(as_tuple=True)
            split = partial(_split, token, num_rows, len(x) // num_rows)
            inner, outer = ((name, taps.get((name, expert))) for name in self.parameters)
            hidden = self._activation(self._linear(x[token], expert, *inner, split))
            out = self._linear(hidden, expert, *outer, split)
            y.index_add_(0, token, (out * weights[token, slot, None]).to(y.dtype))
        return y

    def _linear(
        self, x: Tensor, expert: int, name: str, tap: Receiver | None, split: Callable[[Receiver], "RowSplit"]
    ) -> Tensor:
        bias = self.module.get_parameter(name + BIAS)[expert] if self.module.has_bias else None
        output = linear(x, self.weight(name, expert), bias)
        if tap is not None:
            by_row = split(tap)
            kept = tap.keep(by_row(x.detach()))
            output.register_hook(lambda gradient: tap.receive(kept, by_row(gradient)))
        return output

    def _activation(self, hidden: Tensor) -> Tensor:
        return self.module._apply_gate(hidden) if self.module.has_gate else self.module.act_fn(hidden)


class RowSplit:
    """Tokens in order of their rows as [b t _], with zeros where there is none: what is zero adds nothing to δ xᵀ."""

    def __init__(self, row: Int[Tensor, " S"], position: Int[Tensor, " S"], size: tuple[int, int]) -> None:
        self._row, self._position, self._size = row, position, size

    @classmethod
    def compact(cls, row: Int[Tensor, " S"], num_rows: int) -> "RowSplit":
        """Each row's tokens first, zeros after."""
        counts = torch.bincount(row, minlength=num_rows)
        starts = counts.cumsum(0) - counts
        return cls(row, torch.arange(len(row), device=row.device) - starts[row], (num_rows, int(counts.max())))

    def __call__(self, values: Float[Tensor, "S d"]) -> Float[Tensor, "b t d"]:
        split = values.new_zeros(*self._size, values.shape[-1])
        split[self._row, self._position] = values
        return split


def _split(token: Int[Tensor, " S"], num_rows: int, length: int, receiver: Receiver) -> RowSplit:
    """How a receiver gets these tokens of rows of one length."""
    if getattr(receiver, "keeps_places", False):
        return RowSplit(token // length, token % length, (num_rows, length))
    return RowSplit.compact(token // length, num_rows)


class TappedExperts:
    """One module of fused experts whose forward pass, while installed, is the one above."""

    def __init__(self, module: nn.Module, taps: Mapping[tuple[str, int], Receiver]) -> None:
        self._experts, self._taps = FusedExperts(module), taps

    def install(self, num_rows: Callable[[], int]) -> None:
        def forward(x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
            return self._experts.forward(starts_graph(x), experts, weights, taps=self._taps, num_rows=num_rows())

        assert "forward" not in vars(self._experts.module), "the experts are tapped already"
        self._experts.module.forward = forward

    def remove(self) -> None:
        del self._experts.module.forward


def starts_graph(x: Tensor) -> Tensor:
    """x, differentiable: no weight is, so something has to be."""
    return x if x.requires_grad else x.detach().requires_grad_()


def fused_experts(module: nn.Module) -> FusedExperts | None:
    """The experts of a module that is laid out like transformers' and agrees with the formula above; else None."""
    try:
        experts = FusedExperts(module)
        stored = {name for name, parameter in module.named_parameters(recurse=False) if not name.endswith(BIAS)}
        is_understood = stored == set(experts.parameters) and not module.has_post_expert_norm
        return experts if is_understood and _agrees_on_probe(experts) else None
    except NOT_UNDERSTOOD:
        return None


@torch.no_grad()
def _agrees_on_probe(experts: FusedExperts) -> bool:
    weight = experts.weight(experts.parameters[0], 0)
    if weight.dtype not in FLOATING_POINT:
        return False
    if weight.is_meta:  # asked when it has values
        return True
    x = probe_values(4, weight.shape[1], like=weight)
    chosen = (torch.arange(8, device=weight.device) % experts.num_experts).view(4, 2)
    weights = probe_values(4, 2, like=weight).abs()
    own = inspect.unwrap(type(experts.module).forward)  # below the choice of a kernel: not every one takes every dtype
    return agree(own(experts.module, x, chosen, weights), experts.forward(x, chosen, weights))
