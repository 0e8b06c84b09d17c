"""The indexes of one training's checkpoints, in a directory of their own."""

import json
import re

from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import INDEX, location
from trackstar.tasks.index.index_file import read_index

TRAINER_STATE = "trainer_state.json"


def indexes_below(directory: str) -> list[str]:
    """The finished indexes of a directory, that of the newest checkpoint first.

    Raises:
        InputError: There is no such directory, or no finished index in it.
    """
    root = location(directory)
    entries = [entry for entry in root.iterdir() if (entry / INDEX).is_file()] if root.is_dir() else []
    if not entries:
        raise InputError(f"{directory} holds no finished index; give the directory that `trackstar reindex` wrote")
    orders = {str(entry): _order(location(read_index(str(entry)).engine.checkpoint.path)) for entry in entries}
    return sorted(orders, key=orders.__getitem__, reverse=True)


def step_of(checkpoint: UPath) -> int | None:
    """The step that trainer_state.json states, else the number the name ends in."""
    try:
        return int(json.loads((checkpoint / TRAINER_STATE).read_bytes())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):  # absent or half written: the name says it too
        number = re.search(r"(?:^|[^0-9A-Za-z]|step)(\d+)$", checkpoint.name)
        return int(number[1]) if number else None


def _order(checkpoint: UPath) -> tuple[int, str]:
    step = step_of(checkpoint)
    return -1 if step is None else step, checkpoint.name
