"""Every byte of an index against the digests that were taken when it was written."""

from collections.abc import Iterator
from dataclasses import dataclass

from upath import UPath

from storage.errors import CorruptionError
from storage.layout import MANIFEST
from storage.manifest import damaged_files, read_manifest, remove_tree


@dataclass(frozen=True)
class Finding:
    """What is wrong with one artifact: the names of its damaged files, or that it was never completed."""

    directory: UPath
    problem: str


def artifacts(index: UPath) -> Iterator[UPath]:
    """The artifact directories of an index, two levels down, interrupted ones included."""
    for kind in sorted(path for path in index.iterdir() if path.is_dir()):
        yield from sorted(path for path in kind.iterdir() if path.is_dir())


def findings(index: UPath) -> Iterator[Finding | None]:
    """Check the artifacts one after another; None for a sound one."""
    for directory in artifacts(index):
        yield _check(directory)


def remove_damaged(found: list[Finding]) -> None:
    """Delete what is damaged or was interrupted: the next run rebuilds exactly that."""
    for finding in found:
        remove_tree(finding.directory)


def _check(directory: UPath) -> Finding | None:
    if directory.name.startswith("."):
        return Finding(directory, "is what an interrupted run left behind")
    try:
        if read_manifest(directory) is None:
            return Finding(directory, f"was never completed: it has no {MANIFEST}")
        damaged = damaged_files(directory)
    except CorruptionError as error:
        return Finding(directory, error.problem)
    return Finding(directory, f"has damaged files: {', '.join(damaged)}") if damaged else None
