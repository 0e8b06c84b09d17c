"""Checkpoints: what identifies one, and how its model and tokenizer are loaded."""

import json
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.storage.manifest import digest_file, digest_of
from trackstar.tasks.models.loading import Loader

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "second_moment.safetensors")
# What a gradient depends on: configuration, weights, tokenizer; not the optimizer, logs or training arguments.
MODEL_FILES = (
    "config.json", "*quant*config.json", "*.safetensors", "pytorch_model*.bin", "*.index.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.spm", "*.tiktoken", "tekken.json",
)  # fmt: skip
CODE_FILES = "**/*.py"  # beside these, where code that comes with the checkpoint is run
NAMES_CODE = ("config.json", "tokenizer_config.json")  # their auto_map says which class of which file
ADAPTER_FILES = ("adapter_config.json", "adapter_model.*")


class ModelConfig(BaseModel):
    """How the model is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Model")

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="Precision of the model; projected gradients are float32 in any case."
    )
    device: str = Field("auto", description="Torch device; auto takes a GPU where there is one.")
    context_tokens: int | None = Field(
        None, ge=2, description="Longest window in tokens; by default the context the model was trained with."
    )
    token_budget: int = Field(4096, ge=16, description="Tokens of a batch, padding included.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the checkpoint.")


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
    _refuse_adapters(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{path} holds no config.json; give the directory of a Hugging Face checkpoint")
    names = sorted({file.name for pattern in MODEL_FILES for file in directory.glob(pattern)} - set(OPTIMIZER_FILES))
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


def decoder(path: str, config: ModelConfig) -> Loader:
    """How the decoder of a checkpoint is loaded.

    Raises:
        InputError: It is no decoder-only language model.
    """
    # Experts one after another, as they run while they are tapped, and in every precision.
    how = {"dtype": getattr(torch, config.dtype), "experts_implementation": "eager"}
    loader = Loader(
        AutoModelForCausalLM, path, what="a causal language model", trust_remote_code=config.trust_remote_code, **how
    )
    if loader.config().is_encoder_decoder:
        raise InputError(f"{path} is an encoder-decoder; only decoder-only models can be traced")
    return loader


def load_model(checkpoint: Checkpoint, config: ModelConfig) -> PreTrainedModel:
    """Load the decoder, frozen and ready to be indexed.

    Raises:
        InputError: It is no decoder-only language model, or its files do not hold the whole of it.
    """
    model = decoder(checkpoint.path, config).model()
    model.config.use_cache = False
    return model.to(device(config)).eval().requires_grad_(False)


def load_tokenizer(checkpoint: Checkpoint, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the checkpoint's own tokenizer.

    Raises:
        InputError: The checkpoint has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(location(checkpoint.path)), trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{checkpoint.path} has no usable tokenizer ({_first_line(error)}); save the tokenizer beside the model"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"{checkpoint.path} has a slow tokenizer; save its fast form (tokenizer.json) beside the model"
        )
    return tokenizer


def context_tokens(model: nn.Module, config: ModelConfig) -> int:
    """Longest window in tokens: the setting, or what the model was trained with.

    Raises:
        InputError: The setting exceeds what the model can take, or neither says.
    """
    text_config = model.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "seq_length", None)
    if config.context_tokens is None and limit is None:
        raise InputError(f"the {text_config.model_type} model states no context length; give context_tokens")
    if limit is not None and config.context_tokens is not None and config.context_tokens > limit:
        raise InputError(f"context_tokens is {config.context_tokens}; this model takes at most {limit}")
    return config.context_tokens or limit


def device(config: ModelConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _digest(directory: UPath, names: list[str]) -> str:
    return digest_of({name: digest_file(directory / name) for name in names})


def _optimizer_digest(directory: UPath) -> str | None:
    names = [name for name in OPTIMIZER_FILES if (directory / name).is_file()]
    return _digest(directory, names) if names else None


def _refuse_adapters(directory: UPath) -> None:
    for pattern in ADAPTER_FILES:
        for file in directory.glob(pattern):
            raise InputError(
                f"{directory} holds an adapter ({file.name}), and gradients are taken of whole weights only; merge it "
                "into the model and save that, or move the adapter's files away to trace the base model"
            )


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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
