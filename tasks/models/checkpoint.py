"""How a checkpoint's model and tokenizer are loaded; ``checkpoint_files`` says what identifies one."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.tasks.models.checkpoint_files import Checkpoint, model_files, read_checkpoint
from trackstar.tasks.models.loading import Loader
from trackstar.tasks.models.settings import ModelConfig

__all__ = [
    "Checkpoint", "ModelConfig", "context_tokens", "decoder", "device", "load_model", "load_tokenizer", "model_files",
    "read_checkpoint",
]  # fmt: skip


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
        raise InputError(f"the {text_config.model_type} model states no context length; give --context-tokens")
    if limit is not None and config.context_tokens is not None and config.context_tokens > limit:
        raise InputError(f"--context-tokens is {config.context_tokens}; this model takes at most {limit}")
    return config.context_tokens or limit


def device(config: ModelConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
