"""The weight matrices of a decoder-only transformer, found by structure instead of by a list of model names.

The decoder layers are the ``nn.ModuleList`` whose length is ``config.num_hidden_layers``. A direct child of a layer
is attention when its forward takes an attention mask, which no feed-forward module needs; whatever else in a layer
maps one vector to another is MLP. Embeddings, unembedding, norms and biases are left out, tied or not.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Kind = Literal["attention", "mlp"]

FLOATING_POINT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class WeightMatrix:
    """One weight of a decoder layer, seen as G [m n] = [out in]; a fused query-key-value weight is one matrix.

    Attributes:
        name: Parameter name, such as ``model.layers.0.self_attn.q_proj.weight``.
        module: Path of the module that owns it.
        kind: The half of the layer it belongs to.
        layer: Index of its decoder layer.
        shape: (m, n) = (outputs, inputs), whatever the storage orientation.
        transposed: Whether the parameter is stored [in out], as in GPT-2's Conv1D.
    """

    name: str
    module: str
    kind: Kind
    layer: int
    shape: tuple[int, int]
    transposed: bool


def find_weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Return every attention and MLP weight matrix of the decoder, in layer order, then in module order.

    Raises:
        ValueError: The decoder layers cannot be told apart, or a layer holds a weight that is no linear map.
    """
    path, layers = find_decoder_layers(model)
    matrices: list[WeightMatrix] = []
    owners: dict[int, str] = {}
    for index, layer in enumerate(layers):
        for module_path, module, kind in _modules_of_layer(layer, path=f"{path}.{index}"):
            if _owns_weight_matrix(module, path=module_path):
                _refuse_shared(module.weight, path=module_path, owners=owners)
                matrices.append(_weight_matrix(module, path=module_path, kind=kind, layer=index))
    return matrices


def assign_blocks(matrices: Sequence[WeightMatrix], *, num_layer_groups: int) -> dict[str, list[WeightMatrix]]:
    """Return the matrices of each block, ``attention.00``, ``mlp.00``, ``attention.01``, ...

    Args:
        num_layer_groups: How many contiguous groups, equal in size to within one layer, share a block; a decoder
            with fewer layers has one group a layer.
    """
    if num_layer_groups < 1:
        raise ValueError(f"num_layer_groups is {num_layer_groups}, but there must be at least one group; raise it to 1")
    layers = sorted({matrix.layer for matrix in matrices})
    num_groups = min(num_layer_groups, len(layers))
    group_of = {layer: position * num_groups // len(layers) for position, layer in enumerate(layers)}
    blocks: dict[str, list[WeightMatrix]] = {
        f"{kind}.{group:02d}": [] for group in range(num_groups) for kind in ("attention", "mlp")
    }
    for matrix in matrices:
        blocks[f"{matrix.kind}.{group_of[matrix.layer]:02d}"].append(matrix)
    return {name: members for name, members in blocks.items() if members}


def find_decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of the decoder layers.

    Raises:
        ValueError: Not exactly one list of ``config.num_hidden_layers`` modules has attention in it.
    """
    num_layers = _num_hidden_layers(model)
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and _has_attention(module)
    }
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of config.num_hidden_layers = {num_layers} modules with "
            f"attention in them ({', '.join(found) or 'none'}), expected exactly one, the decoder layers: "
            "use a decoder-only transformer"
        )
    return next(iter(found.items()))


def _num_hidden_layers(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    num_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise ValueError(
            f"{type(model).__name__} has no integer config.num_hidden_layers (it is {num_layers!r}): "
            "load the checkpoint with transformers.AutoModelForCausalLM"
        )
    return num_layers


def _has_attention(layers: nn.ModuleList) -> bool:
    return any(_takes_mask(child) for layer in layers for child in layer.children())


def _modules_of_layer(layer: nn.Module, *, path: str) -> Iterator[tuple[str, nn.Module, Kind]]:
    """A layer and every module inside it, with the kind that its direct child of the layer has."""
    yield path, layer, "mlp"
    for child_name, child in layer.named_children():
        kind: Kind = "attention" if _takes_mask(child) else "mlp"
        # Shared modules are listed each time, so that sharing is seen and refused.
        for name, module in child.named_modules(prefix=f"{path}.{child_name}", remove_duplicate=False):
            yield name, module, kind


def _takes_mask(module: nn.Module) -> bool:
    # The class's forward: hooks and compilation replace the instance's.
    return any(name.endswith("mask") for name in inspect.signature(type(module).forward).parameters)


def _owns_weight_matrix(module: nn.Module, *, path: str) -> bool:
    """Whether a module is a linear map with a weight of its own; refuse any other owner of a weight."""
    weights = {name: weight for name, weight in module.named_parameters(recurse=False) if weight.ndim > 1}
    if not weights or isinstance(module, nn.Embedding):
        return False
    if set(weights) == {"weight"} and _is_linear_map(module):
        return True
    shapes = ", ".join(f"{name} {list(weight.shape)} {weight.dtype}" for name, weight in weights.items())
    raise ValueError(
        f"{path} is a {type(module).__module__}.{type(module).__name__} with {shapes}, but only the floating-point "
        "weights of nn.Linear and transformers' Conv1D are understood: use a dense, unquantised checkpoint, or teach "
        "tasks/numerics/architecture.py this module"
    )


def _is_linear_map(module: nn.Module) -> bool:
    """Whether the module computes x Wᵀ + b, a subclass with a forward of its own included if it agrees on a probe."""
    if not isinstance(module, nn.Linear | Conv1D) or module.weight.dtype not in FLOATING_POINT:
        return False
    weight = _oriented(module)
    if isinstance(module, nn.Linear) and weight.shape != (module.out_features, module.in_features):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    return _agrees_on_probe(module, weight)


@torch.no_grad()
def _agrees_on_probe(module: nn.Module, weight: Tensor) -> bool:
    # Powers of two, exact in every dtype: what differs is the order of summation alone.
    probe = 2.0 ** -(torch.arange(weight.shape[1], device=weight.device) % 5).to(weight.dtype)
    output = module(probe[None])
    expected = nn.functional.linear(probe[None], weight, module.bias)
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    tolerance = 0.02 * expected.abs().max().item()  # above bfloat16's rounding of a sum, below any change of meaning
    return torch.allclose(output, expected, rtol=0, atol=tolerance)


def _oriented(module: nn.Module) -> Tensor:
    """The weight as [out in]."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _weight_matrix(module: nn.Module, *, path: str, kind: Kind, layer: int) -> WeightMatrix:
    m, n = _oriented(module).shape
    return WeightMatrix(f"{path}.weight", path, kind, layer, (m, n), isinstance(module, Conv1D))


def _refuse_shared(weight: Tensor, *, path: str, owners: dict[int, str]) -> None:
    if (owner := owners.setdefault(id(weight), path)) != path:
        raise ValueError(
            f"{path} shares its weight with {owner}, but the gradient of a matrix is collected at one module: "
            "use a checkpoint whose layers do not share weights"
        )
