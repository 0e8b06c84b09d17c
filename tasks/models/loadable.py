"""Whether a checkpoint can be indexed, known from its headers, configuration and tokenizer before any work is done."""

import json
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import Checkpoint, ModelConfig, decoder, load_tokenizer, model_files


@dataclass(frozen=True)
class Outline:
    """What two checkpoints of one training have in common.

    Attributes:
        architecture: The model's class.
        shapes: Of its parameters.
        tokenizer: Digest of all that turns a text into ids.
    """

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    tokenizer: str


def require_loadable(path: str, config: ModelConfig) -> Outline:
    """Refuse a checkpoint that could not be loaded wholly, or whose tokenizer is of another model.

    Raises:
        InputError: Says what is wrong with which file.
    """
    model_files(path, trust_remote_code=config.trust_remote_code)
    model = decoder(path, config).outline()
    tokenizer = load_tokenizer(Checkpoint(path=path, digest="", optimizer_digest=None), config)
    _require_vocabulary(model, tokenizer, path)
    return Outline(
        architecture=type(model).__name__,
        shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        tokenizer=_tokenizer_digest(tokenizer),
    )


def require_same_model(path: str, config: ModelConfig, *, beside: str) -> None:
    """Refuse to add up the gradients of checkpoints that are not states of one model.

    Raises:
        InputError: Either cannot be loaded, or they differ in architecture, shapes or tokenizer.
    """
    other, own = require_loadable(path, config), require_loadable(beside, config)
    if other.architecture != own.architecture:
        difference = f"is a {other.architecture} and {beside} a {own.architecture}"
    elif other.shapes != own.shapes:
        difference = _first_difference(other.shapes, own.shapes, beside)
    elif other.tokenizer != own.tokenizer:
        difference = f"has another tokenizer than {beside}"
    else:
        return
    raise InputError(f"{path} {difference}; give checkpoints of one training, whose gradients can be added up")


def _require_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Every token that the tokenizer can return has an embedding."""
    num_rows = len(model.get_input_embeddings().weight)
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= num_rows:
        raise InputError(
            f"{path}: its tokenizer gives {token!r} the number {last}, and the model has {num_rows} embeddings; save "
            "the tokenizer that the model was trained with, or `model.resize_token_embeddings(len(tokenizer))`"
        )


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of how texts become ids: how long a text may be and what a batch is filled up with do not count."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest_of({name: value for name, value in settings.items() if name not in ("truncation", "padding")})


def _first_difference(other: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]], beside: str) -> str:
    name = min(name for name in other.keys() | own.keys() if other.get(name) != own.get(name))
    shapes = [list(shape) if shape is not None else "absent" for shape in (other.get(name), own.get(name))]
    return f"has {name} {shapes[0]}, which is {shapes[1]} in {beside}"
