"""Second moments beside a checkpoint: the project's own file, or the optimizer state that training left.

    second_moment.safetensors    the project's own; it comes first
        NAME.values              V, of the parameter's shape
        NAME.row, NAME.column    or its factors, V = row columnᵀ / mean(row); of fused experts, [E m] and [E n]
    optimizer.pt                 Trainer, or torch.save(optimizer.state_dict())
    optimizer.bin                consolidated FSDP

NAME is the parameter's name. The file keeps every tensor in the parameter's own storage orientation: ``row`` belongs
to the first axis of a matrix and ``column`` to the second. GPT-2's Conv1D weights are stored [in out], so there
``row`` belongs to the inputs. In memory a second moment is always oriented as its matrix, (out, in).
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT, location
from trackstar.tasks.models.optimizer_files import find_state
from trackstar.tasks.models.optimizer_formats import CURE, match_parameters, read_state, second_moment_of
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.second_moment import SecondMoment, transpose


def read_second_moments(
    checkpoint: UPath | str, model: nn.Module, matrices: Sequence[WeightMatrix]
) -> dict[str, SecondMoment] | None:
    """Return V of every matrix by parameter name, oriented (out, in), or None if the checkpoint keeps none.

    Adam's bias correction is left out: one factor for all matrices, which no score depends on.

    Raises:
        InputError: What is there belongs to another model, is not read, or holds no second moment of some matrix.
    """
    path = find_state(checkpoint)
    if path is None:
        return None
    read = read_second_moment_file if path.name == SECOND_MOMENT else _read_optimizer
    return read(path, model, matrices)


def read_second_moment_file(path: UPath, model: nn.Module, matrices: Sequence[WeightMatrix]) -> dict[str, SecondMoment]:
    """Return V of every matrix from the project's own file; parameters that are no matrix are left alone.

    Raises:
        InputError: The file is damaged, belongs to another model, or lacks a matrix.
    """
    tensors = _load_safetensors(path)
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition(".")
        fields.setdefault(name, {})[field] = tensor
    if unknown := fields.keys() - {name for name, _ in model.named_parameters()}:
        raise InputError(f"{path} holds {min(unknown)}, which is no parameter of this {type(model).__name__}: {CURE}")
    _require_as_many_experts(fields, model, matrices, path=path)
    return {
        matrix.name: _checked(second_moment_of, fields.get(matrix.parameter, {}), matrix, path=path)
        for matrix in matrices
    }


def write_second_moments(
    path: UPath | str, second_moments: Mapping[str, SecondMoment], *, matrices: Sequence[WeightMatrix]
) -> None:
    """Write V, oriented (out, in) in memory, in the storage orientation of each parameter."""
    parts: dict[str, list[Tensor]] = {}
    experts = {matrix.parameter for matrix in matrices if matrix.expert is not None}
    for matrix in matrices:
        if matrix.name in second_moments:
            V = second_moments[matrix.name]
            stored = transpose(V) if matrix.transposed else V
            for field, tensor in vars(stored).items():
                parts.setdefault(f"{matrix.parameter}.{field}", []).append(tensor.contiguous().cpu())
    tensors = {
        name: torch.stack(members) if name.rpartition(".")[0] in experts else members[0]
        for name, members in parts.items()
    }
    location(path).write_bytes(safetensors.torch.save(tensors))


def _require_as_many_experts(
    fields: Mapping[str, Mapping[str, Tensor]], model: nn.Module, matrices: Sequence[WeightMatrix], *, path: UPath
) -> None:
    for name in {matrix.parameter for matrix in matrices if matrix.expert is not None}:
        num_experts = len(model.get_parameter(name))
        for field, tensor in fields.get(name, {}).items():
            if len(tensor) != num_experts:
                raise InputError(
                    f"{path}, {name}: its {field} is {list(tensor.shape)}, and the model has {num_experts} experts: "
                    f"{CURE}"
                )


def _read_optimizer(path: UPath, model: nn.Module, matrices: Sequence[WeightMatrix]) -> dict[str, SecondMoment]:
    optimizer = load_optimizer(path)
    try:
        states = match_parameters(optimizer, model)
    except InputError as error:
        raise InputError(f"{path} does not belong to this model: {error}") from error
    return {
        matrix.name: _checked(read_state, states.get(matrix.parameter, {}), matrix, path=path) for matrix in matrices
    }


def _checked(
    read: Callable[[Mapping[str, Any], WeightMatrix], SecondMoment],
    entries: Mapping[str, Any],
    matrix: WeightMatrix,
    *,
    path: UPath,
) -> SecondMoment:
    """Read one matrix's V and compare its shape; an error names the file and the matrix."""
    try:
        oriented = read(entries, matrix)
    except ValueError as error:
        raise InputError(f"{path}, {matrix.name}: {error}") from error
    if oriented.shape != matrix.shape:
        raise InputError(
            f"{path}, {matrix.name}: its second moment is {list(oriented.shape)} as (out, in), "
            f"and the model's matrix is {list(matrix.shape)}: {CURE}"
        )
    return oriented


def load_optimizer(path: UPath) -> dict[str, Any]:
    """The optimizer's state dict: tensors, numbers, strings and containers, and nothing else is unpickled."""
    try:
        content = _torch_load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} needs Python objects to be unpickled, which is refused because that runs code from the file: "
            "save `optimizer.state_dict()` of plain tensors, or use --second-moment estimated"
        ) from error
    except RuntimeError as error:
        raise InputError(f"{path} is damaged ({error}): copy it again, or use --second-moment estimated") from error
    if isinstance(content, dict) and "optimizer" in content:  # torch.distributed.checkpoint wraps it
        content = content["optimizer"]
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        raise InputError(f"{path} is not what `torch.save(optimizer.state_dict())` writes: {CURE}")
    return content


def _torch_load(path: UPath) -> object:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise RuntimeError("not a file that torch.save wrote, or cut short")
        file.seek(0)
        if path.protocol in ("", "file"):  # mapped, so that only what is used is read
            return torch.load(path.path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_safetensors(path: UPath) -> dict[str, Tensor]:
    try:
        if path.protocol in ("", "file"):
            return safetensors.torch.load_file(path.path)
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): write it again, or use --second-moment estimated") from error
