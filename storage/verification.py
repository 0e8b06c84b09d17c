"""Every byte of an index against the digests that were taken when it was written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import CorruptionError, InputError
from trackstar.storage.index_file import read_index_file
from trackstar.storage.layout import (
    COST,
    COST_CURE,
    CURRENT,
    INDEX,
    KINDS,
    MANIFEST,
    is_draft_name,
    is_link,
    is_local,
    require_artifact_name,
)
from trackstar.storage.locks import is_held
from trackstar.storage.manifest import damaged_files, read_manifest
from trackstar.storage.removal import SUFFIXES, artifacts, foreign_names, is_ours, remove_artifact
from trackstar.storage.sealed import unsealed
from trackstar.storage.tombstone_copies import COPIES, KIND, tables

LEFT_BEHIND = "is what an interrupted run left behind"


@dataclass(frozen=True)
class Finding:
    """What is wrong with one artifact, or with index.json.

    Attributes:
        is_damage: Or else it is what an interrupted run left behind: nothing that is read is affected.
    """

    path: UPath
    problem: str
    is_damage: bool = True


def require_index(directory: UPath) -> None:
    """Refuse what is no index, finished or begun: whatever lies there is not ours to judge or to delete.

    Raises:
        InputError: It is no directory, holds indexes, or holds nothing that makes one.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; give an index")
    require_no_indexes(directory)
    if not (_is_index_file(directory / INDEX) or any(_is_written(path) for path in artifacts(directory))):
        problem = f"{directory} is no index: it holds neither an {INDEX} of ours nor an artifact"
        raise InputError(f"{problem}; give a directory that `trackstar index` wrote")


def require_no_indexes(directory: UPath) -> None:
    """Refuse a directory of indexes, such as ``trackstar reindex`` keeps, in the place of an index.

    Raises:
        InputError: Names one of them.
    """
    if (directory / INDEX).exists() or not directory.is_dir():
        return
    inside = sorted(child.name for child in directory.iterdir() if _is_index_file(child / INDEX))
    if not inside and (directory / CURRENT).exists():
        raise InputError(f"{directory} is a directory of indexes ({CURRENT}) and none itself; give another one")
    if inside:
        raise InputError(f"{directory} holds indexes and is none; name one of them, such as {directory / inside[0]}")


def index_names(directory: UPath) -> list[str]:
    """Names of the indexes below a directory; one that is reached by a link is none of them."""
    if not directory.is_dir():
        return []
    return sorted(child.name for child in directory.iterdir() if not is_link(child) and _is_index_file(child / INDEX))


def findings(index: UPath) -> Iterator[Finding | None]:
    """Check the artifacts one after another, then what index.json says there should be; None for a sound one."""
    for directory in artifacts(index):
        if not is_held(directory):  # a living process is writing it
            yield _check(directory)
        if (directory / COST).is_file():
            yield _check_cost(directory / COST)
    for digest in tables(index):
        if not (index / COPIES / digest).exists():
            yield Finding(index / KIND / digest, "has no second copy")
    if (index / INDEX).is_file():
        yield from _check_index(index)


def remove_damaged(found: list[Finding]) -> list[Finding]:
    """Delete what is damaged or was interrupted, so that the next run rebuilds exactly that; return what was left.

    Left is what is not ours, what a living process writes, who was withdrawn, which nothing can compute anew, and on an
    object store whatever has no manifest yet: no lock says whether a process is writing it.
    """
    return [finding for finding in found if not _remove(finding.path)]


def _remove(path: UPath) -> bool:
    if path.name == INDEX:
        path.unlink(missing_ok=True)
        return True
    if path.name == COST and is_ours(path.parent):
        path.unlink(missing_ok=True)
        return True
    if path.parent.name in (KIND, COPIES) and not is_draft_name(path.name):
        return False
    if not (is_link(path) or is_link(path.parent) or path.exists()):
        return True
    if path.parent.name not in KINDS or is_link(path.parent) or not is_ours(path):
        return False
    return (is_local(path) or (path / MANIFEST).exists()) and remove_artifact(path)


def _check(directory: UPath) -> Finding | None:
    if is_draft_name(directory.name):
        return Finding(directory, LEFT_BEHIND, is_damage=False)
    try:
        manifest = read_manifest(directory)
        if manifest is None:
            unfinished = Finding(directory, f"{LEFT_BEHIND}: it has no {MANIFEST}", is_damage=False)
            return unfinished if is_ours(directory) else None
        if "stage" in manifest.identity and digest_of(manifest.identity)[:16] != directory.name:
            return Finding(directory, "holds another artifact than its name says")
        damaged = damaged_files(directory)
    except CorruptionError as error:
        return Finding(directory, error.problem)
    if damaged:
        foreign = foreign_names(directory)
        beside = f"; {', '.join(foreign)} in it is not ours, move it elsewhere to have it repaired" if foreign else ""
        return Finding(directory, f"has damaged files: {', '.join(damaged)}{beside}")
    return None


def _check_cost(path: UPath) -> Finding | None:
    try:
        unsealed(path.read_bytes())
    except ValueError as error:
        return Finding(path, f"{error}; {COST_CURE}")
    return None


def _check_index(index: UPath) -> Iterator[Finding | None]:
    """Whether index.json is what was written, and every artifact it names is the one that lies there."""
    try:
        named = list(_named_artifacts(read_index_file(index)))
        for artifact in named:
            require_artifact_name(str(artifact["name"]))
    except CorruptionError as error:
        yield Finding(index / INDEX, error.problem)
        return
    except InputError:  # of another format, which is no damage
        raise
    except ValueError as error:
        yield Finding(index / INDEX, str(error))
        return
    shards = [artifact["name"] for artifact in named if artifact["name"].startswith("shards/")]
    if shards and not any((index / name).is_dir() for name in shards):
        yield Finding(index / INDEX, "names none of the shards that lie here: it is another index's")
        return
    for artifact in named:
        directory = index / artifact["name"]
        if is_link(directory) or is_link(directory.parent):
            yield Finding(directory, "is reached by a symbolic link, which is not followed; put the directory there")
            continue
        try:
            manifest = read_manifest(directory)
        except CorruptionError:
            continue  # reported with the artifact
        if manifest is None:
            yield Finding(directory, f"is named in {INDEX} and is not there")
        elif manifest.digest != artifact["digest"]:
            yield Finding(directory, f"holds other files than those that {INDEX} names")


def _is_index_file(path: UPath) -> bool:
    """Whether this is an index.json of ours, as far as it can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and {"engine", "shards"} <= value.keys()


def _is_written(directory: UPath) -> bool:
    """Whether this was certainly written by us: it is a draft, or has a manifest of ours, damaged or not."""
    try:
        return is_ours(directory) and (is_draft_name(directory.name) or read_manifest(directory) is not None)
    except CorruptionError:
        return any(child.name.endswith(SUFFIXES) for child in directory.iterdir())


def _named_artifacts(value: Any) -> Iterator[dict[str, Any]]:
    """The references to artifacts anywhere in a JSON value."""
    if isinstance(value, dict):
        if value.keys() == {"name", "digest", "facts"}:
            yield value
        for item in value.values():
            yield from _named_artifacts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named_artifacts(item)
