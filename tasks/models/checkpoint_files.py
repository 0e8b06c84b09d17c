"""What identifies a checkpoint: the files of its directory and their digests. Nothing is loaded here."""

import json
import zipfile
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.digests import digest_file, digest_of
from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.tasks.models.weight_names import weight_files

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "second_moment.safetensors")
# What a gradient depends on: configuration, weights, tokenizer; not the optimizer, logs or training arguments.
MODEL_FILES = (
    "config.json", "*quant*config.json", "*.safetensors", "pytorch_model*.bin", "*.index.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.spm", "*.tiktoken", "tekken.json",
)  # fmt: skip
WEIGHT_ENDS = (".safetensors", ".bin", ".index.json")
CODE_FILES = "**/*.py"  # beside these, where code that comes with the checkpoint is run
NAMES_CODE = ("config.json", "tokenizer_config.json")  # their auto_map says which class of which file
ADAPTER_FILES = ("adapter_config.json", "adapter_model.*")
CONTEXT_LIMITS = ("max_position_embeddings", "n_positions", "seq_length")
PICKLE = b"\x80"  # its first byte
HEADER_LENGTH_BYTES = 8


class Checkpoint(BaseModel):
    """A reference to a checkpoint directory and the digests of what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: str
    optimizer_digest: str | None

    @property
    def name(self) -> str:
        return location(self.path).name


def read_checkpoint(path: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """Identify the checkpoint in a Hugging Face model directory by its content.

    Raises:
        InputError: There is no model in the directory, or an adapter beside it.
    """
    directory = location(path)
    names = model_files(path, trust_remote_code=trust_remote_code)
    return Checkpoint(path=str(path), digest=_digest(directory, names), optimizer_digest=_optimizer_digest(directory))


def model_files(path: str, *, trust_remote_code: bool = False) -> list[str]:
    """Names of the files that a checkpoint's gradients depend on.

    Raises:
        InputError: There is no model in the directory, or an adapter beside it.
    """
    directory = location(path)
    for name in adapter_files(directory):
        raise InputError(
            f"{directory} holds an adapter ({name}), and gradients are taken of whole weights only; merge it into the "
            "model and save that, or move the adapter's files away to trace the base model"
        )
    if not (directory / "config.json").is_file():
        saved = [child for child in directory.glob("checkpoint-*") if child.name.removeprefix("checkpoint-").isdigit()]
        newest = max(saved, key=lambda child: int(child.name.removeprefix("checkpoint-")), default=None)
        cure = f"its newest checkpoint is {newest}, give that" if newest else "give the directory of a checkpoint"
        raise InputError(f"{path} holds no config.json; {cure}")
    found = {file.name for pattern in MODEL_FILES for file in directory.glob(pattern)} - set(OPTIMIZER_FILES)
    names = sorted(name for name in found if not name.startswith("."))  # ._model.safetensors is the Finder's
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise InputError(f"{path} holds no weights (*.safetensors or pytorch_model*.bin); was it saved to the end?")
    return names + (code_files(directory) if trust_remote_code else [])


def code_files(directory: UPath) -> list[str]:
    """Names, below the directory, of the code that is run where the checkpoint is trusted; of most there is none.

    Raises:
        InputError: The code lies in another place than the checkpoint.
    """
    targets = [target for name in NAMES_CODE for target in _code_targets(directory / name)]
    for target in targets:
        if "--" in target:  # REPOSITORY--module.Class, from a cache that no digest covers
            raise InputError(
                f"{directory} runs code of another repository ({target}); copy that code into the directory and take "
                "the repository's name out of auto_map"
            )
    return sorted(str(file.relative_to(directory)) for file in directory.glob(CODE_FILES)) if targets else []


def require_whole(path: str, *, context_tokens: int | None = None) -> None:
    """Raise InputError for a checkpoint that no model is in, a file of which was not written to its end, that has no
    tokenizer, or that takes fewer tokens than it is to be given; nothing of it is loaded."""
    directory = location(path)
    names = model_files(path)
    if problem := first_problem(directory):
        raise InputError(f"{path} is no whole checkpoint: {problem}; save or copy it again")
    if not any(name.startswith(("tokenizer", "vocab.")) or name.endswith(".model") for name in names):
        raise InputError(f"{path} holds no tokenizer; save it beside the model")
    _require_decoder(directory / "config.json", context_tokens)


def first_problem(directory: UPath) -> str | None:
    """What is wrong with the files that loading reads; old weights beside newer ones are none of them.

    Raises:
        InputError: There are no weights, or they lie in pieces of another kind.
    """
    others = [name for name in model_files(str(directory)) if not name.endswith(WEIGHT_ENDS)]
    if problem := _first_of(directory / name for name in others):
        return problem
    return _first_of([*weight_files(directory), *(directory / name for name in optional_files(directory))])


def _first_of(files: Iterable[UPath]) -> str | None:
    return next((problem for problem in map(problem_of, files) if problem), None)


def optional_files(checkpoint: UPath) -> list[str]:
    return [name for name in ("optimizer.pt", "second_moment.safetensors") if (checkpoint / name).is_file()]


def problem_of(file: UPath) -> str | None:
    """What is wrong with one file of a checkpoint, as far as can be seen without loading it."""
    if not file.is_file():
        return f"{file.name} is not there yet"
    try:
        if file.name.endswith(".safetensors"):
            _require_whole_safetensors(file)
        elif file.name.endswith((".bin", ".pt")):
            _require_whole_archive(file)
        elif file.name.endswith(".json"):
            _require_whole_json(file)
    except ValueError as error:
        return f"{file.name} is half written: {error}"
    return None


def _require_whole_safetensors(file: UPath) -> None:
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        if header_bytes > size_bytes:
            raise ValueError(f"its header alone should have {header_bytes} bytes, it has {size_bytes}")
        header = json.loads(stream.read(header_bytes))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    expected_bytes = HEADER_LENGTH_BYTES + header_bytes + max(ends, default=0)
    if size_bytes != expected_bytes:
        raise ValueError(f"it has {size_bytes} bytes and its header declares {expected_bytes}")


def _require_whole_archive(file: UPath) -> None:
    with file.open("rb") as stream:
        is_of_old_torch = stream.read(1) == PICKLE  # it has no end that could be looked at
        stream.seek(0)
        if not is_of_old_torch and not zipfile.is_zipfile(stream):  # the directory of a zip file is written last
            raise ValueError("what torch.save writes last is not there")


def _require_whole_json(file: UPath) -> None:
    content = json.loads(file.read_bytes())
    shards = content.get("weight_map", {}).values() if isinstance(content, dict) else ()
    absent = sorted({shard for shard in shards if not (file.parent / shard).is_file()})
    if absent:
        raise ValueError(f"{absent[0]}, which it names, is not there yet")


def _require_decoder(file: UPath, context_tokens: int | None) -> None:
    config = json.loads(file.read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{file} names no model_type; give the directory of a Hugging Face checkpoint")
    if config.get("is_encoder_decoder") is True:
        raise InputError(f"{file} is of an encoder-decoder; only decoder-only models can be traced")
    limits = [config[name] for name in CONTEXT_LIMITS if isinstance(config.get(name), int)]
    if context_tokens is not None and limits and context_tokens > limits[0]:
        raise InputError(f"--context-tokens is {context_tokens}; the model of {file} takes at most {limits[0]}")


def _digest(directory: UPath, names: list[str]) -> str:
    return digest_of({name: digest_file(directory / name) for name in names})


def _optimizer_digest(directory: UPath) -> str | None:
    names = [name for name in OPTIMIZER_FILES if (directory / name).is_file()]
    return _digest(directory, names) if names else None


def adapter_files(directory: UPath) -> list[str]:
    """Names of the files of an adapter, which is no whole model and changes one that lies beside it."""
    return sorted(file.name for pattern in ADAPTER_FILES for file in directory.glob(pattern))


def _code_targets(file: UPath) -> list[str]:
    """What a configuration's auto_map points to: classes, or several of them."""
    try:
        content: Any = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}); save the checkpoint again") from error
    auto_map = content.get("auto_map") if isinstance(content, dict) else None
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    entries = [entry for value in values for entry in (value if isinstance(value, list | tuple) else [value])]
    return [entry for entry in entries if isinstance(entry, str)]
