"""The tensors that loading a checkpoint reads, from the headers of its files: names, shapes and types, no values."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trackstar.storage.errors import InputError
from trackstar.tasks.models.weight_names import SAVE_AGAIN, weight_files

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def stored_tensors(directory: Path, *, safetensors_only: bool = False) -> dict[str, Tensor]:
    """Every tensor by name, on the meta device.

    Raises:
        InputError: There are none, a file is missing or damaged, or they lie in pieces of another kind.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        if safetensors_only and not file.name.endswith(".safetensors"):
            raise InputError(f"{directory} keeps weights in {file.name}, expected safetensors; {SAVE_AGAIN}")
        if not file.is_file():
            raise InputError(f"{directory} lacks {file.name}, which its index names; copy the whole checkpoint again")
        tensors |= _from_safetensors(file) if file.name.endswith(".safetensors") else _from_torch(file)
    return tensors


def _from_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            return {
                # types of fewer than eight bits belong to quantised weights, as bytes do
                name: torch.empty(part.get_shape(), dtype=DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}); copy it again") from error


def _from_torch(file: Path) -> dict[str, Tensor]:
    """Mapped, so that no value is read; a file of before torch 1.6 cannot be."""
    options = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(file, mmap=True, **options)
        except RuntimeError:
            content = torch.load(file, **options)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} needs Python objects to be unpickled, which is refused because that runs code from the file; "
            f"{SAVE_AGAIN}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, expected tensors by name; {SAVE_AGAIN}")
    return {name: value.to("meta") for name, value in content.items() if isinstance(value, Tensor)}
