"""What transformers reports of a load, judged: a model is taken only if every weight of it is the checkpoint's own.

transformers fills what a file lacks with random numbers, leaves out what it has no place for, and only prints either.
"""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from trackstar.storage.errors import InputError

logger = logging.getLogger(__name__)

# What wrappers put into the names of weights -> what leaves it out.
WRAPPERS = {
    "_orig_mod": "torch.compile puts it there: save the model inside, `model._orig_mod.save_pretrained(DIR)`",
    "_fsdp_wrapped_module": "FSDP puts it there: save the model inside",
    "base_model": "PEFT puts it there: merge the adapter, `model.merge_and_unload().save_pretrained(DIR)`",
    "module": "data parallelism puts it there: save the model inside, `model.module.save_pretrained(DIR)`",
}
COMPUTED = (r"(^|\.)inv_freq$", r"(^|\.)position_ids$")  # buffers that follow from the configuration
ONE_MODEL = "put the config.json and the weights of one model together, or save it again with save_pretrained"


def require_whole(
    model: nn.Module,
    report: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    *,
    path: str,
    unneeded: Collection[str] = (),
    cure: str = ONE_MODEL,
) -> None:
    """Refuse a model that is not wholly the checkpoint's; warn of weights outside its layers that it has no place for.

    Args:
        model: As it was loaded.
        report: The loading info of ``from_pretrained``, mismatched sizes ignored.
        stored: What the files hold.
        path: Of the checkpoint, for the sentence.
        unneeded: Beginnings of names of weights that nothing is computed from.
        cure: What to do about weights that are missing.

    Raises:
        InputError: A weight is missing or has another shape, or one of a layer has no place.
    """
    if report["error_msgs"]:
        raise InputError(f"{path} cannot be loaded: {report['error_msgs'][0]}; {ONE_MODEL}")
    kind = type(model).__name__
    missing = [name for name in sorted(report["missing_keys"]) if not _is_computed(model, name)]
    tied = getattr(model, "all_tied_weights_keys", {})  # to what is missing itself, then
    missing = [name for name in missing if not name.startswith(tuple(unneeded)) and name not in tied]
    if missing:
        raise InputError(f"{path} {_lack(missing, stored, kind=kind, cure=cure)}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(f"{path}: {name} is {list(found)} in the file and {list(expected)} in {kind}; {ONE_MODEL}")
    unexpected = [name for name in sorted(report["unexpected_keys"]) if not _is_mask(stored.get(name))]
    if of_layers := [name for name in unexpected if _is_of_a_layer(model, name)]:
        raise InputError(
            f"{path} holds {_some(of_layers)}, for which the {kind} of its config.json has no place; {ONE_MODEL}"
        )
    if unexpected:
        logger.warning("%s: %s is no part of %s and is left out", path, _some(unexpected), kind)


def _lack(missing: list[str], stored: Mapping[str, Tensor], *, kind: str, cure: str) -> str:
    """What is missing, and whether the names of what is there explain it."""
    for wrapper, explanation in WRAPPERS.items():
        wrapped = [name for name in stored if wrapper in name.split(".")]
        if wrapped and not any(wrapper in name.split(".") for name in missing):
            return f"has `{wrapper}.` in the names of weights ({wrapped[0]}); {explanation}, or take it off the names"
    return f"has no {_some(missing)}, which {kind} would fill with random numbers; {cure}"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _is_computed(model: nn.Module, name: str) -> bool:
    """Whether it is a buffer that no training changes: the model has made it itself."""
    buffer = dict(model.named_buffers()).get(name)
    if buffer is None:
        return False
    return not buffer.is_floating_point() or _is_mask(buffer) or any(re.search(p, name) for p in COMPUTED)


def _is_mask(tensor: Tensor | None) -> bool:
    """A causal mask [1 1 n n] or the number that fills it, which older checkpoints keep in every attention layer."""
    if tensor is None:
        return False
    return tensor.ndim == 0 or (tensor.ndim == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3])


def _is_of_a_layer(model: nn.Module, name: str) -> bool:
    """Whether it lies where the model keeps its numbered layers, ``model.layers.`` say."""
    prefix = f"{model.base_model_prefix}."
    stacks = {match[0] for known, _ in model.named_parameters() if (match := re.match(r".*?\.(?=\d+\.)", known))}
    return any(candidate.startswith(tuple(stacks)) for candidate in (name, prefix + name, name.removeprefix(prefix)))
