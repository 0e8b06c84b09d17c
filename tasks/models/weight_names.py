"""Which files of a checkpoint hold the weights that loading reads, by transformers' own order. No torch is needed."""

import json
import re
from pathlib import Path, PurePosixPath

from upath import UPath

from trackstar.storage.errors import InputError

# In the order that transformers looks for them; each as one file or as an index of several.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
RANKS_PIECE = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"
SAVE_AGAIN = "save the model again with save_pretrained"


def weight_files(directory: Path | UPath) -> list[Path | UPath]:
    """The files that transformers would read.

    Raises:
        InputError: There are none, or the index cannot be read.
    """
    if pieces := pieces_of_ranks(directory):
        raise InputError(f"{directory} holds the weights in pieces of several ranks ({pieces[0]}); {SAVE_AGAIN}")
    for name in (_named_by_config(directory), *WEIGHT_FILES):
        if name is not None and (directory / name).is_file():
            return _shards(directory / name) if name.endswith(".index.json") else [directory / name]
        if name is not None and (index := directory / f"{name}.index.json").is_file():
            return _shards(index)
    raise InputError(f"{directory} holds no {' or '.join(WEIGHT_FILES)}, whole or in shards; was it saved to the end?")


def pieces_of_ranks(directory: Path | UPath) -> list[str]:
    """Names of the pieces that several processes saved, which are no model until they are put together."""
    return sorted(file.name for file in directory.iterdir() if re.fullmatch(RANKS_PIECE, file.name))


def _named_by_config(directory: Path | UPath) -> str | None:
    """``transformers_weights``, a setting by which a checkpoint names its file of weights."""
    name = _json_object(directory / "config.json").get("transformers_weights")
    return None if name is None else _plain_name(name, directory / "config.json")


def _shards(index: Path | UPath) -> list[Path | UPath]:
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} names no shards (weight_map); {SAVE_AGAIN}")
    return [index.parent / name for name in sorted({_plain_name(name, index) for name in weight_map.values()})]


def _plain_name(name: object, source: Path | UPath) -> str:
    if not isinstance(name, str) or PurePosixPath(name).name != name:
        raise InputError(f"{source} names {name!r} as a file of weights, expected one beside it; {SAVE_AGAIN}")
    return name


def _json_object(file: Path | UPath) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no JSON ({error}); {SAVE_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, expected an object; {SAVE_AGAIN}")
    return content
