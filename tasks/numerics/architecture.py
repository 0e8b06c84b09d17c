"""The weight matrices of a decoder-only transformer, found by structure instead of by a list of model names.

The decoder layers are the ``nn.ModuleList`` whose length is ``config.num_hidden_layers``. A direct child of a layer
is attention when its forward takes an attention mask, which no feed-forward module needs; whatever else in a layer
maps one vector to another is MLP. Embeddings, unembedding, norms and biases are left out, tied or not. Experts that
are fused in one parameter of three dimensions are one matrix each.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trackstar.tasks.numerics.experts import fused_experts
from trackstar.tasks.numerics.linear_maps import is_linear_map, oriented_weight

Kind = Literal["attention", "mlp", "unembedding"]


@dataclass(frozen=True)
class WeightMatrix:
    """One weight of a decoder layer, seen as G [m n] = [out in]; a fused query-key-value weight is one matrix.

    Attributes:
        name: Parameter name, such as ``model.layers.0.self_attn.q_proj.weight``; that of an expert ends in its number,
            ``model.layers.0.mlp.experts.down_proj.3``.
        module: Path of the module that is the linear map; of an expert, which is none, its name.
        kind: The half of the layer it belongs to.
        layer: Index of its decoder layer; -1 for the unembedding, which is in none.
        shape: (m, n) = (outputs, inputs), whatever the storage orientation.
        transposed: Whether the parameter is stored [in out], as in GPT-2's Conv1D.
        expert: Which slice of its parameter it is, where experts are fused.
    """

    name: str
    module: str
    kind: Kind
    layer: int
    shape: tuple[int, int]
    transposed: bool
    expert: int | None = None

    @property
    def parameter(self) -> str:
        """Name of the parameter that it is, or is a slice of."""
        return self.name if self.expert is None else self.name.rpartition(".")[0]

    def part_of(self, stored: Tensor) -> Tensor:
        """This matrix's [m n] of a tensor that is stored like its parameter."""
        matrix = stored if self.expert is None else stored[self.expert]
        return matrix.T if self.transposed else matrix


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
            found = list(_matrices_of(module, path=module_path, kind=kind, layer=index))
            for parameter in {matrix.parameter.rpartition(".")[2] for matrix in found}:
                _refuse_shared(module.get_parameter(parameter), path=module_path, owners=owners)
            matrices += found
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


def _matrices_of(module: nn.Module, *, path: str, kind: Kind, layer: int) -> Iterator[WeightMatrix]:
    """The matrices a module owns; refuse any other owner of a weight."""
    weights = {name: weight for name, weight in module.named_parameters(recurse=False) if weight.ndim > 1}
    if not weights or isinstance(module, nn.Embedding):
        return
    if set(weights) == {"weight"} and is_linear_map(module):
        m, n = oriented_weight(module).shape
        yield WeightMatrix(f"{path}.weight", path, kind, layer, (m, n), isinstance(module, Conv1D))
    elif (experts := fused_experts(module)) is not None:
        for parameter in experts.parameters:
            m, n = experts.weight(parameter, 0).shape
            for expert in range(experts.num_experts):
                name = f"{path}.{parameter}.{expert}"
                yield WeightMatrix(name, name, kind, layer, (m, n), experts.is_transposed, expert)
    else:
        _refuse_unknown(module, weights, path=path)


def _refuse_unknown(module: nn.Module, weights: Mapping[str, Tensor], *, path: str) -> NoReturn:
    shapes = ", ".join(f"{name} {list(weight.shape)} {weight.dtype}" for name, weight in weights.items())
    raise ValueError(
        f"{path} is a {type(module).__module__}.{type(module).__name__} with {shapes}, but only floating-point linear "
        "maps (nn.Linear, transformers' Conv1D, routers) and transformers' fused experts are understood: use an "
        "unquantised checkpoint, or teach tasks/numerics/architecture.py this module"
    )


def _refuse_shared(weight: Tensor, *, path: str, owners: dict[int, str]) -> None:
    if (owner := owners.setdefault(id(weight), path)) != path:
        raise ValueError(
            f"{path} shares its weight with {owner}, but the gradient of a matrix is collected at one module: "
            "use a checkpoint whose layers do not share weights"
        )
