"""The tensors that loading a checkpoint reads, from the headers of its files: names, shapes and types, no values."""

import json
import pickle
import re
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trackstar.storage.errors import InputError

# In the order that transformers looks for them; each as one file or as an index of several.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
RANKS_PIECE = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SAVE_AGAIN = "save the model again with save_pretrained"


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


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers would read.

    Raises:
        InputError: There are none, or the index cannot be read.
    """
    if pieces := sorted(file.name for file in directory.iterdir() if re.fullmatch(RANKS_PIECE, file.name)):
        raise InputError(f"{directory} holds the weights in pieces of several ranks ({pieces[0]}); {SAVE_AGAIN}")
    for name in (_named_by_config(directory), *WEIGHT_FILES):
        if name is not None and (directory / name).is_file():
            return _shards(directory / name) if name.endswith(".index.json") else [directory / name]
        if name is not None and (index := directory / f"{name}.index.json").is_file():
            return _shards(index)
    raise InputError(f"{directory} holds no {' or '.join(WEIGHT_FILES)}, whole or in shards; was it saved to the end?")


def _named_by_config(directory: Path) -> str | None:
    """``transformers_weights``, a setting by which a checkpoint names its file of weights."""
    name = _json_object(directory / "config.json").get("transformers_weights")
    return None if name is None else _plain_name(name, directory / "config.json")


def _shards(index: Path) -> list[Path]:
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} names no shards (weight_map); {SAVE_AGAIN}")
    return [index.parent / name for name in sorted({_plain_name(name, index) for name in weight_map.values()})]


def _plain_name(name: object, source: Path) -> str:
    if not isinstance(name, str) or PurePosixPath(name).name != name:
        raise InputError(f"{source} names {name!r} as a file of weights, expected one beside it; {SAVE_AGAIN}")
    return name


def _json_object(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no JSON ({error}); {SAVE_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, expected an object; {SAVE_AGAIN}")
    return content


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
