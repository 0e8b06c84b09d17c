"""The learning rate at a checkpoint, where training left it: what its gradients were worth to the next step."""

import json
from math import isfinite
from typing import Any

from upath import UPath

from trackstar.storage.layout import location
from trackstar.tasks.models.optimizer_files import OPTIMIZER_FILES
from trackstar.tasks.models.optimizer_state import load_optimizer

TRAINER_STATE = "trainer_state.json"


def read_learning_rate(checkpoint: str) -> float | None:
    """The last one that the Trainer logged up to this checkpoint, else the optimizer's, if all its groups have one."""
    directory = location(checkpoint)
    logged = _logged(directory / TRAINER_STATE)
    if logged is not None:
        return logged
    path = next((directory / name for name in OPTIMIZER_FILES if (directory / name).is_file()), None)
    if path is None:
        return None
    rates = {_rate(group.get("lr")) for group in load_optimizer(path)["param_groups"]}
    return rates.pop() if len(rates) == 1 else None


def _logged(path: UPath) -> float | None:
    try:
        state = json.loads(path.read_bytes())
        last = int(state["global_step"])
        entries = [entry for entry in state["log_history"] if "learning_rate" in entry and int(entry["step"]) <= last]
        return _rate(entries[-1]["learning_rate"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # absent, or of another program
        return None


def _rate(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) and value >= 0 else None
