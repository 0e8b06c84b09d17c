"""Which of a directory of indexes serves: ``INDEXES/current.json`` names it, and who asks the directory asks that one.

The file is replaced as a whole, on disk by a rename, in an object store by one put, so that there is always one index
that serves. ``previous.json`` is what it said before. Both name an index beside them; neither is ever a link.
"""

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.layout import CURRENT, INDEX, PREVIOUS, RESULTS, is_link, location
from trackstar.storage.partial_files import write_atomically
from trackstar.storage.sealed import sealed, unsealed
from trackstar.storage.verification import require_no_indexes
from trackstar.storage.writer import changing

CURE = "say which index serves with `trackstar promote INDEXES NAME`"


def require_index_name(name: str) -> str:
    """The name of an index below a directory of them, as it was: it comes out of a file, and becomes a path.

    Raises:
        InputError: It is no name of one directory, or that of what else lies there.
    """
    is_plain = PurePosixPath(name).name == name != "" and not name.startswith(".") and not set(name) & set("\\\0/")
    if not is_plain or name == RESULTS:
        raise InputError(f"{name!r} names no index of a directory of indexes; give a name such as step-1000-1f2e3d4c")
    return name


class Serving(BaseModel):
    """What ``current.json`` says.

    Attributes:
        index: The name of the index that serves.
        previous: The one that served before; a rollback goes back to it.
        promoted_at: When, in UTC and ISO 8601.
        promoted_by: A run of ``reindex``, or a person's ``promote`` or ``rollback``.
        gates: What was measured of it before.
        held: Indexes that a person has rolled back from: no run of ``reindex`` promotes them again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: Annotated[str, AfterValidator(require_index_name)]
    previous: Annotated[str, AfterValidator(require_index_name)] | None = None
    promoted_at: str
    promoted_by: Literal["reindex", "promote", "rollback"]
    gates: tuple[dict[str, Any], ...] = ()
    held: tuple[str, ...] = ()


def serving_of(indexes: UPath) -> Serving | None:
    """What serves in a directory of indexes; None where nothing has been promoted.

    Raises:
        CorruptionError: ``current.json`` is not what was written.
    """
    path = indexes / CURRENT
    try:
        return Serving.model_validate(unsealed(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise CorruptionError(path, f"names no index ({error.errors()[0]['msg']})", CURE) from error
    except ValueError as error:
        raise CorruptionError(path, str(error), CURE) from error


def resolved(url: str) -> str:
    """The index that is meant by a path: itself, or of a directory of indexes the one that serves.

    Raises:
        InputError: It holds indexes, and none of them serves.
        MissingError: The one that serves is not there.
        CorruptionError: Nobody can read which one serves.
    """
    directory = location(url)
    if (directory / INDEX).exists():
        return str(directory)
    serving = serving_of(directory)
    if serving is None:
        require_no_indexes(directory)
        return str(directory)
    return str(_index_in(directory, serving.index))


def promote(
    indexes: UPath, name: str, *, by: Literal["reindex", "promote"], gates: tuple[dict[str, Any], ...] = ()
) -> Serving:
    """Let another index serve, and return what serves now.

    Raises:
        InputError: It is no name of an index.
        MissingError: No finished index is there by that name.
    """
    _index_in(indexes, require_index_name(name))
    with changing(indexes):
        before = _readable(indexes)
        held = tuple(other for other in (before.held if before else ()) if other != name)
        is_serving = before is not None and before.index == name
        previous = before and (before.previous if is_serving else before.index)
        return _switch(indexes, before, index=name, previous=previous, promoted_by=by, gates=gates, held=held)


def roll_back(indexes: UPath) -> Serving:
    """Let the index serve that did before, and keep later runs from promoting this one again.

    Raises:
        InputError: Nothing serves, or nothing did before.
        MissingError: What served before is not there any more.
    """
    with changing(indexes):
        before = serving_of(indexes)
        if before is None or before.previous is None:
            raise InputError(f"{indexes} has no index that served before; {CURE}")
        _index_in(indexes, before.previous)
        held = tuple(dict.fromkeys([*(name for name in before.held if name != before.previous), before.index]))
        return _switch(
            indexes, before, index=before.previous, previous=before.index, promoted_by="rollback", gates=(), held=held
        )


def spared(indexes: UPath) -> set[str]:
    """Names of the indexes that are not to be removed: the one that serves, and the one a rollback goes back to."""
    serving = serving_of(indexes)
    return {name for name in (serving.index, serving.previous) if name} if serving else set()


def _switch(indexes: UPath, before: Serving | None, **changes: Any) -> Serving:
    serving = Serving(promoted_at=datetime.now(UTC).isoformat("T", "seconds"), **changes)
    if before is not None and before.index != serving.index:
        _write(indexes / PREVIOUS, before)
    _write(indexes / CURRENT, serving)
    return serving


def _readable(indexes: UPath) -> Serving | None:
    """What serves; a damaged file is written anew by whoever promotes."""
    try:
        return serving_of(indexes)
    except CorruptionError:
        return None


def _write(path: UPath, serving: Serving) -> None:
    content = sealed(serving.model_dump(mode="json"))
    with write_atomically(path) as file:
        file.write(content)


def _index_in(indexes: UPath, name: str) -> UPath:
    directory = indexes / name
    if is_link(directory) or not (directory / INDEX).is_file():
        raise MissingError(directory, "is no finished index", CURE)
    return directory
