"""Whether a module with a weight W [m n] is the linear map x Wᵀ + b, asked of the module itself.

A router, say, returns the logits x Wᵀ first and what it makes of them after. That is a linear map too as long as all
that follows is computed from the first result: then the gradient of W is Σ_t δ_t x_tᵀ with δ taken there.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

FLOATING_POINT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 0.02  # of the largest value: above bfloat16's rounding of a sum, below any change of meaning
NOT_UNDERSTOOD = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)  # a forward that is no map of one x


def is_linear_map(module: nn.Module) -> bool:
    """Whether the module's result, or the first of its results, is x Wᵀ + b, and the others depend on x through it."""
    weight = oriented_weight(module)
    if weight.ndim != 2 or weight.dtype not in FLOATING_POINT:
        return False
    if isinstance(module, nn.Linear) and weight.shape != (module.out_features, module.in_features):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward) or weight.is_meta:  # asked when it has values
        return True
    try:
        return _agrees_on_probe(module, weight)
    except NOT_UNDERSTOOD:
        return False


def oriented_weight(module: nn.Module) -> Tensor:
    """The weight as [out in]."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def first_result(output: object) -> object:
    """What the map computes, of a module that returns more than that."""
    return output[0] if isinstance(output, tuple) and output else output


def probe_values(*shape: int, like: Tensor) -> Tensor:
    """Powers of two of both signs, exact in every dtype: what two kernels differ by is the order of summation alone."""
    steps = torch.arange(torch.Size(shape).numel(), device=like.device)
    return ((-1.0) ** (steps // 3) * 2.0 ** -(steps % 5)).to(like.dtype).view(shape)


def agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.to(expected.dtype), expected, rtol=0, atol=TOLERANCE * expected.abs().max().item()
    )


def _agrees_on_probe(module: nn.Module, weight: Tensor) -> bool:
    x = probe_values(2, weight.shape[1], like=weight).requires_grad_()
    with torch.enable_grad():
        output = module(x)
    first = first_result(output)
    if not isinstance(first, Tensor) or not agree(first, linear(x, weight, module.bias if _has_bias(module) else None)):
        return False
    others = [other for other in output[1:] if _is_differentiable(other)] if first is not output else []
    return all(_depends_through(first, other, x=x, weight=weight) for other in others)


def _depends_through(first: Tensor, other: Tensor, *, x: Tensor, weight: Tensor) -> bool:
    """Whether ∂other/∂x is δ W with δ = ∂other/∂first."""
    cotangent = probe_values(*other.shape, like=other)
    whole, delta = torch.autograd.grad(other, (x, first), cotangent, retain_graph=True, allow_unused=True)
    if whole is None:
        return True
    return delta is not None and agree(delta.to(weight.dtype) @ weight, whole)


def _is_differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)
