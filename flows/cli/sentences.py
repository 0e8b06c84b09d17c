"""Everything that can go wrong as one sentence for a person, and as an exit code.

2: the input or the arguments are wrong. 1: something on disk or of the system is. None: nobody foresaw it.
"""

import errno
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click
from pydantic import ValidationError

from trackstar.flows.cli.options import Setting, settings_of
from trackstar.storage.errors import InputError, MissingError, PartlyDoneError, StorageError
from trackstar.tasks.runtime.settings import Settings

SHOWN_CHARACTERS = 60
OUT_OF_MEMORY = (
    "out of memory; what was finished is kept: give the same command with a lower --token-budget, or another index a "
    "lower --projection-dim (`--dry-run` says what a run takes)"
)


def explain(error: BaseException, config: type[Settings] | None) -> tuple[str, int | None]:
    """The sentence and the exit code of an error.

    Args:
        config: The settings of the command that was used, whose options the sentence names.
    """
    if isinstance(error, ValidationError):
        return wrong_setting(error, list(settings_of(config)) if config else []), 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, InputError | MissingError):
        return str(error), 2
    if isinstance(error, StorageError | PartlyDoneError):
        return str(error), 1
    if isinstance(error, OSError) and error.strerror:  # a full disk, a directory that may not be written to
        return f"{error.filename or 'the system'}: {error.strerror}", 2 if error.errno == errno.EACCES else 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is loaded or not
        return OUT_OF_MEMORY, 1
    return "", None


def wrong_setting(error: ValidationError, settings: Sequence[Setting]) -> str:
    """What the first wrong setting is, what was expected of it, and the nearest choice where there are some."""
    problem = error.errors()[0]
    missing = [_named(other["loc"], settings) for other in error.errors() if other["type"] == "missing"]
    if missing:
        names = [name for names in missing for name in names]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing; --help says what to give"
    setting = _setting_at(problem["loc"], settings)
    message = problem["msg"].removeprefix("Value error, ")
    if setting is None:
        place = ".".join(map(str, problem["loc"]))
        return message if problem["type"] == "value_error" else f"{place} is {shown(problem['input'])}: {message}"
    given = f"{setting.option.name} is {shown(problem['input'])}"
    if problem["type"] == "value_error":
        return f"{given}: {message}"
    nearest = get_close_matches(str(problem["input"]), setting.choices, n=1)
    return f"{given}, expected {setting.expected}{f'; did you mean {nearest[0]}?' if nearest else ''}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def printable(text: str) -> str:
    """On one line, and without what would move a terminal's cursor or change its colours."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)


def _setting_at(place: Sequence[Any], settings: Sequence[Setting]) -> Setting | None:
    return next((setting for setting in settings if place[: len(setting.path)] == setting.path), None)


def _named(place: tuple[Any, ...], settings: Sequence[Setting]) -> list[str]:
    """The options of what is missing: of settings that are missing as a whole, those that have no default."""
    within = [setting for setting in settings if setting.path[: len(place)] == place and setting.field.is_required()]
    return [setting.option.name for setting in within] or [".".join(map(str, place))]
