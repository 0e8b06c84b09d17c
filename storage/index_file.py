"""``index.json`` as bytes: its format version, and the digest it holds of itself."""

import json
from collections.abc import Mapping
from typing import Any

from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.layout import INDEX
from trackstar.storage.sealed import SELF_DIGEST, sealed, unsealed

FORMAT = 2  # raised when what an index holds on disk changes: manifests and index.json that check themselves
_FORMAT = "format"


def index_bytes(value: Mapping[str, Any]) -> bytes:
    """What an index.json that says this consists of."""
    return sealed({_FORMAT: FORMAT, **value})


def read_index_file(index: UPath) -> dict[str, Any]:
    """What the index.json of an index says, less its format version.

    Raises:
        MissingError: There is none.
        InputError: It is of another format version than this one.
        CorruptionError: Its bytes are not those that were written.
    """
    path = index / INDEX
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(index, "holds no finished index", "build it with `trackstar index`") from None
    try:
        value = unsealed(content)
    except ValueError as error:
        if _is_of_first_format(content):
            raise _other_format(index, "1", "an earlier version") from None
        raise CorruptionError(path, str(error), "run `trackstar index` again to write it anew") from error
    found = value.pop(_FORMAT, None)
    if found != FORMAT:
        raise _other_format(index, found, "another version")
    return value


def _is_of_first_format(content: bytes) -> bool:
    """Whether this is a whole index.json of the time when it stated neither a format nor a digest."""
    try:
        value = json.loads(content)
    except ValueError:
        return False
    return (
        isinstance(value, dict) and not value.keys() & {_FORMAT, SELF_DIGEST} and {"engine", "shards"} <= value.keys()
    )


def _other_format(index: UPath, found: object, writer: str) -> InputError:
    return InputError(
        f"{index} is an index of format {found}, written by {writer} of trackstar, and this one reads format {FORMAT}; "
        "build it again with `trackstar index` in another directory, or delete this one first"
    )
