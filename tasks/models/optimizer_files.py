"""Which file of a checkpoint V is read from; nothing of it is loaded here."""

import re
import shlex

from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT, location

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
# What else training leaves of an optimizer: folders, pieces of ranks, files of other names.
UNREAD = re.compile(
    r"(^|[._-])optim(izer)?s?([._-]|\d|$)|optim(izer)?_?states?|opt_states?|train(ing|er)_state\.(pt|pth|bin)$"
    r"|^global_step\d|^zero_pp_rank|^mp_rank|\.distcp$",
    re.IGNORECASE,
)
SETTINGS = (".json", ".yaml", ".yml", ".txt", ".md", ".py", ".log", ".csv", ".html", ".png")


def find_state(checkpoint: UPath | str) -> UPath | None:
    """Return the file that V is read from, or None if training left no optimizer state.

    Raises:
        InputError: It left one that is not read: an estimate in its place has to be asked for.
    """
    directory = location(checkpoint)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; expected a checkpoint directory with config.json in it")
    for name in (SECOND_MOMENT, *OPTIMIZER_FILES):
        if (directory / name).is_file():
            return directory / name
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name):
        if UNREAD.search(entry.name) and not entry.name.endswith(SETTINGS):
            raise InputError(
                f"{directory} holds an optimizer state that is not read as it is ({entry.name}), expected "
                f"{' or '.join(OPTIMIZER_FILES)}: {_conversion(entry)}use --second-moment estimated"
            )
    return None


def _conversion(entry: UPath) -> str:
    """The command that makes one file of what torch.distributed.checkpoint wrote."""
    if not (entry / ".metadata").is_file():
        return ""
    paths = f"{shlex.quote(str(entry))} {shlex.quote(str(entry.parent / OPTIMIZER_FILES[0]))}"
    return f"run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {paths}`, or "
