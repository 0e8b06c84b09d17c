"""How a sentence encoder makes one vector of a text: what sentence-transformers wrote beside it, else the mean.

modules.json               the steps in order; each is a class and the folder of its settings
1_Pooling/config.json      which states are taken
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from upath import UPath

from trackstar.storage.errors import InputError

MODULES, POOLING = "modules.json", "1_Pooling"
HARMLESS = ("Transformer", "Pooling", "Normalize")  # cosines are of unit vectors in any case
UNSTATED = "not stated by the encoder"
PREFIX = "pooling_mode_"
MODES: dict[str, str] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "lasttoken"}

Mode = Literal["mean", "cls", "lasttoken"]


class Pooling(BaseModel):
    """Which states a vector is made of, and what said so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode
    source: str

    @property
    def is_stated(self) -> bool:
        return self.source != UNSTATED


def read_pooling(directory: UPath) -> Pooling:
    """The encoder's own way to pool.

    Raises:
        InputError: It is another than the mean, the first or the last token, or more is done after it.
    """
    folder = _pooling_folder(directory)
    settings = read_settings(directory / folder / "config.json")
    if not settings:
        return Pooling(mode="mean", source=UNSTATED)
    source = f"{folder}/config.json"
    if isinstance(settings.get("pooling_mode"), str):
        chosen = [settings["pooling_mode"]]
    else:
        names = [name.removeprefix(PREFIX) for name, value in settings.items() if name.startswith(PREFIX) and value]
        chosen = [MODES.get(name, name) for name in names] or ["mean"]
    if len(chosen) != 1 or chosen[0] not in MODES.values():
        raise InputError(
            f"{directory / source} pools by {' and '.join(chosen)}; give an encoder that takes the mean, the first or "
            "the last token"
        )
    return Pooling(mode=chosen[0], source=source)


def pool(states: Tensor, mask: Tensor, mode: Mode) -> Tensor:
    """Return, of states [b t d], the mean over real tokens [b d], or the state of the first or the last one."""
    if mode == "mean":
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    places: dict[str, Callable[[Tensor], Tensor]] = {
        "cls": lambda real: real.argmax(1),
        "lasttoken": lambda real: (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1),
    }
    return states[torch.arange(len(states), device=states.device), places[mode](mask.int())]


def read_settings(path: UPath) -> dict[str, Any]:
    """A JSON object, empty where there is no such file.

    Raises:
        InputError: The file holds something else.
    """
    content = _read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected an object; save the encoder again")
    return content


def _pooling_folder(directory: UPath) -> str:
    """Where the settings of pooling lie, once no step of the encoder is left out.

    Raises:
        InputError: One would be.
    """
    if not (directory / MODULES).is_file():
        return POOLING
    steps = _read_json(directory / MODULES)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{directory / MODULES} is no list of steps; save the encoder again")
    kinds = {str(step.get("type", "")).rpartition(".")[2]: str(step.get("path", "")) for step in steps}
    if unknown := [kind for kind in kinds if kind not in HARMLESS]:
        raise InputError(
            f"{directory / MODULES} has the step {unknown[0]}, which would be left out; give an encoder of "
            "Transformer, Pooling and Normalize alone"
        )
    folder = kinds.get("Pooling", POOLING)
    if kinds.get("Transformer") or not folder or folder != UPath(folder).name or folder == "..":
        raise InputError(f"{directory / MODULES} keeps a step elsewhere than beside it; save the encoder again")
    return folder


def _read_json(path: UPath) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); save the encoder again") from error
