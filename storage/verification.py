"""Every byte of an index against the digests that were taken when it was written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from upath import UPath

from trackstar.storage.errors import CorruptionError
from trackstar.storage.index_file import read_index_file
from trackstar.storage.layout import COST, COST_CURE, INDEX, MANIFEST, is_artifact_name
from trackstar.storage.locks import is_held
from trackstar.storage.manifest import damaged_files, digest_of, read_manifest, remove_tree
from trackstar.storage.sealed import unsealed

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


def artifacts(index: UPath) -> Iterator[UPath]:
    """The artifact directories of an index, interrupted ones included; a directory of any other name is not ours."""
    for kind in sorted(path for path in index.iterdir() if path.is_dir()):
        yield from sorted(path for path in kind.iterdir() if path.is_dir() and is_artifact_name(path.name))


def findings(index: UPath) -> Iterator[Finding | None]:
    """Check the artifacts one after another, then what index.json says there should be; None for a sound one."""
    present = list(artifacts(index))
    for directory in present:
        if not is_held(directory):  # a living process is writing it
            yield _check(directory)
        if (directory / COST).is_file():
            yield _check_cost(directory / COST)
    if (index / INDEX).is_file():
        yield from _check_index(index)


def remove_damaged(found: list[Finding]) -> None:
    """Delete what is damaged or was interrupted: the next run rebuilds exactly that."""
    for finding in found:
        if finding.path.is_dir():
            remove_tree(finding.path)
        else:
            finding.path.unlink(missing_ok=True)


def _check(directory: UPath) -> Finding | None:
    if directory.name.startswith("."):
        return Finding(directory, LEFT_BEHIND, is_damage=False)
    try:
        manifest = read_manifest(directory)
        if manifest is None:
            return Finding(directory, f"{LEFT_BEHIND}: it has no {MANIFEST}", is_damage=False)
        if "stage" in manifest.identity and digest_of(manifest.identity)[:16] != directory.name:
            return Finding(directory, "holds another artifact than its name says")
        damaged = damaged_files(directory)
    except CorruptionError as error:
        return Finding(directory, error.problem)
    return Finding(directory, f"has damaged files: {', '.join(damaged)}") if damaged else None


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
    except CorruptionError as error:
        yield Finding(index / INDEX, error.problem)
        return
    shards = [artifact["name"] for artifact in named if artifact["name"].startswith("shards/")]
    if shards and not any((index / name).is_dir() for name in shards):
        yield Finding(index / INDEX, "names none of the shards that lie here: it is another index's")
        return
    for artifact in named:
        directory = index / artifact["name"]
        try:
            manifest = read_manifest(directory)
        except CorruptionError:
            continue  # reported with the artifact
        if manifest is None:
            yield Finding(directory, f"is named in {INDEX} and is not there")
        elif manifest.digest != artifact["digest"]:
            yield Finding(directory, f"holds other files than those that {INDEX} names")


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
