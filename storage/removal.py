"""What may be deleted: artifacts and drafts of ours, and nothing else, whatever it is called and wherever a link leads.

Locally an artifact takes the name of a draft before it is deleted, so that a half-deleted one is never taken for whole.
"""

import uuid
from collections.abc import Iterator

from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import StorageError
from trackstar.storage.layout import (
    COST,
    HOLDER,
    INDEX,
    KINDS,
    LOCK,
    MANIFEST,
    is_artifact_name,
    is_draft_name,
    is_link,
    is_local,
)
from trackstar.storage.locks import claimed
from trackstar.storage.sealed import unsealed

SUFFIXES = (".zarr", ".parquet", ".safetensors")  # of what an artifact holds, where no manifest says it
DEBRIS = frozenset({".DS_Store"})


def artifacts(index: UPath) -> Iterator[UPath]:
    """The artifact directories of an index, drafts included; what has another name, or is a link, is not ours."""
    for kind in sorted(KINDS):
        yield from artifacts_of(index / kind)


def artifacts_of(kind: UPath) -> Iterator[UPath]:
    """The artifact directories of one kind, drafts included."""
    if kind.is_dir() and not is_link(kind):
        found = [path for path in kind.iterdir() if is_artifact_name(path.name) and not is_link(path)]
        yield from sorted(path for path in found if path.is_dir())


def is_ours(directory: UPath) -> bool:
    """Whether a directory that is called as an artifact is one: it is a draft, or holds nothing but what we write."""
    if not is_artifact_name(directory.name) or is_link(directory) or not directory.is_dir():
        return False
    return is_draft_name(directory.name) or not foreign_names(directory)


def foreign_names(directory: UPath) -> list[str]:
    """Names in a directory that no artifact of ours holds, sorted."""
    written = _written_names(directory)
    names = sorted(child.name for child in directory.iterdir())
    return [
        name
        for name in names
        if name not in (MANIFEST, COST, *DEBRIS)
        and (name not in written if written is not None else not name.endswith(SUFFIXES))
    ]


def remove_artifact(directory: UPath) -> bool:
    """Delete an artifact, or a draft that no living process writes; say whether it is gone.

    Raises:
        StorageError: It is not ours.
    """
    if not is_link(directory) and not directory.exists():
        return True
    if not is_ours(directory):
        raise StorageError(directory, "is in an artifact's place and is none of ours", "move it elsewhere")
    if not is_local(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        delete(directory)
        return True
    if is_draft_name(directory.name):
        return _delete_draft(directory)
    nameless = new_draft_path(directory)
    try:
        directory.rename(nameless)
    except FileNotFoundError:  # another process was first
        return True
    return _delete_draft(nameless)


def remove_index(index: UPath) -> None:
    """Delete an index, and its directory too where nothing else is in it; what is not ours stays where it is.

    index.json goes first: a half-removed index must not look finished.
    """
    (index / INDEX).unlink(missing_ok=True)
    for directory in list(artifacts(index)):
        if is_ours(directory):
            remove_artifact(directory)
    if not is_local(index):
        return
    for name in (HOLDER, LOCK):
        (index / name).unlink(missing_ok=True)
    for directory in (*(index / kind for kind in KINDS), index):
        if directory.is_dir() and not is_link(directory) and not any(directory.iterdir()):
            directory.rmdir()


def new_draft_path(directory: UPath) -> UPath:
    """A name for a draft of an artifact, unlike that of any other."""
    return directory.parent / f".{directory.name}.partial-{uuid.uuid4().hex[:8]}"


def _delete_draft(draft: UPath) -> bool:
    with claimed(draft) as is_free:
        if is_free:
            delete(draft)
    return not draft.exists()


def delete(directory: UPath) -> None:
    """Delete a directory of ours that its caller holds, whatever is in it."""
    if directory.exists():
        directory.fs.rm(directory.path, recursive=True)  # of a link within, the link alone


def _written_names(directory: UPath) -> set[str] | None:
    """What the manifest says an artifact consists of; a damaged one, or another artifact's, may say anything."""
    try:
        manifest = unsealed((directory / MANIFEST).read_bytes())
        if "stage" in manifest["identity"] and digest_of(manifest["identity"])[:16] != directory.name:
            return None
        return {name.partition("/")[0] for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
