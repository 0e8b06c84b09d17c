"""A local sequence classifier that says whether a hypothesis follows from a premise.

premise     cut to what the model reads beside the hypothesis, which is never cut
p           softmax of the logits, in float64, at the label that is called ``entailment``
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy import ndarray
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import Checkpoint, read_checkpoint
from trackstar.tasks.models.loading import Loader

LABEL = "entailment"
PAIRS_AT_ONCE = 16
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# Models whose first positions, up to that of padding, are never used.
PADDED_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer"})
NO_LIMIT = 1 << 24  # a tokenizer that was told no length says 1e30

Pair = tuple[str, str]  # premise and hypothesis


class EntailmentModel(BaseModel):
    """A sequence classifier on disk, the place of its label, and the number of tokens it reads of a pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Checkpoint
    label_index: int
    max_tokens: int


def read_entailment_model(path: str) -> EntailmentModel:
    """Identify the classifier in a directory.

    Raises:
        InputError: There is none, it is not whole, has no label "entailment", or does not say how much it reads.
    """
    checkpoint, config, tokenizer = read_checkpoint(path), _loader(path).config(), _load_tokenizer(path)
    _loader(path).outline()
    label_index, max_tokens = _label_index(config, path), _max_tokens(config, tokenizer, path)
    return EntailmentModel(checkpoint=checkpoint, label_index=label_index, max_tokens=max_tokens)


def entailment_probabilities(model: EntailmentModel, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], ndarray]]:
    """Rows of the pairs, and how likely the premise of each entails its hypothesis; like lengths are read together.

    Raises:
        InputError: The model cannot be loaded, leaves a hypothesis no room for a premise, or answers with no number.
    """
    if not pairs:
        return
    tokenizer, classifier = _load(model.checkpoint.path)
    for hypothesis in dict.fromkeys(said for _, said in pairs):
        _require_room(tokenizer, hypothesis, model)
    order = sorted(range(len(pairs)), key=lambda row: len(pairs[row][0]), reverse=True)
    for start in range(0, len(order), PAIRS_AT_ONCE):
        rows = order[start : start + PAIRS_AT_ONCE]
        yield rows, _probabilities(classifier, tokenizer, [pairs[row] for row in rows], model)


@torch.no_grad()
def _probabilities(
    classifier: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], model: EntailmentModel
) -> ndarray:
    premises, hypotheses = map(list, zip(*pairs, strict=True))
    options = {"truncation": "only_first", "max_length": model.max_tokens, "padding": True, "return_tensors": "pt"}
    batch = tokenizer(premises, hypotheses, **options).to(classifier.device)
    values = classifier(**batch).logits.double().softmax(dim=-1)[:, model.label_index].cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"{model.checkpoint.path} answers with numbers that are not finite; save the model again")
    return values


def _load(path: str) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    classifier = _loader(path).model()
    return _load_tokenizer(path), classifier.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _loader(path: str) -> Loader:
    return Loader(
        AutoModelForSequenceClassification,
        path,
        what="an entailment model",
        cure="give a model that was trained to classify pairs",
        use_safetensors=True,
        dtype=torch.float32,
    )


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path} cannot be loaded as an entailment model: {reason}") from error


def _require_room(tokenizer: PreTrainedTokenizerBase, hypothesis: str, model: EntailmentModel) -> None:
    length = len(tokenizer("", hypothesis)["input_ids"])
    if length >= model.max_tokens:
        raise InputError(
            f"{hypothesis[:60]!r} is {length} tokens to {model.checkpoint.path}, which reads {model.max_tokens}, a "
            "document included; shorten the prompt, or leave out --entailment-model"
        )


def _label_index(config: PreTrainedConfig, path: str) -> int:
    labels = {index: str(name) for index, name in config.id2label.items()}
    found = [index for index, name in labels.items() if name.casefold() == LABEL]
    if len(found) != 1 or len(labels) < 2:
        raise InputError(
            f"{path} has the labels {', '.join(labels.values())}; one of two or more must be called {LABEL!r} in the "
            "id2label of its config.json"
        )
    return found[0]


def _max_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, path: str) -> int:
    """What the tokenizer was told, or the positions there are, whichever is less."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in PADDED_POSITIONS:
        positions -= config.pad_token_id + 1
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < NO_LIMIT]
    if not limits:
        raise InputError(f"{path} does not say how much it reads; set model_max_length in its tokenizer_config.json")
    return min(limits)
