"""The second copy of who was withdrawn: the only part of an index that cannot be computed anew.

Each table of tombstones is kept twice, below ``tombstones/`` and ``tombstone_copies/``. Where one is damaged the other
restores it; where both are, nothing is deleted and nothing is asked of the index until a person decides.
"""

from collections.abc import Iterator

from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import CorruptionError, StorageError
from trackstar.storage.layout import TOMBSTONES, is_draft_name, require_artifact_name
from trackstar.storage.manifest import new_artifact, read_checked, require_manifest
from trackstar.storage.removal import artifacts_of, remove_artifact

KIND, COPIES = "tombstones", "tombstone_copies"


def keep_both(index: UPath, name: str) -> None:
    """Make both copies of a table sound, from the one that is; sound ones are left as they are.

    Raises:
        CorruptionError: Neither is.
    """
    both = _places(index, name)
    sound = next((directory for directory in both if is_sound(directory)), None)
    if sound is None:
        raise _lost(*both)
    for directory in both:
        if not is_sound(directory):
            _copy(sound, directory)


def restore(index: UPath) -> tuple[list[str], list[CorruptionError]]:
    """Make both copies of every table sound; return the names of those that were not, and what is lost."""
    restored, lost = [], []
    for digest in tables(index):
        name = f"{KIND}/{digest}"
        if not all(map(is_sound, _places(index, name))):
            try:
                keep_both(index, name)
                restored.append(name)
            except CorruptionError as error:
                lost.append(error)
    return restored, lost


def tables(index: UPath) -> Iterator[str]:
    """The digests that tables are called by, of either copy."""
    found = {path.name for kind in (KIND, COPIES) for path in artifacts_of(index / kind)}
    yield from sorted(name for name in found if not is_draft_name(name))


def require_sound(index: UPath, name: str) -> None:
    """Refuse to go on without a table; restoring it from its copy is for ``verify --repair``.

    Raises:
        CorruptionError: It is damaged or gone.
    """
    table, copy = _places(index, name)
    if is_sound(table):
        return
    if not is_sound(copy):
        raise _lost(table, copy)
    cure = f"run `trackstar verify {index} --repair`, which restores it from its copy"
    raise CorruptionError(table, "is damaged or gone, and with it which documents were withdrawn", cure)


def is_sound(directory: UPath) -> bool:
    """Whether a table is there, is the one its name says, and has the bytes that were written."""
    try:
        manifest = require_manifest(directory)
        read_checked(directory, TOMBSTONES)
    except (StorageError, OSError):
        return False
    return digest_of(manifest.identity)[:16] == directory.name


def _places(index: UPath, name: str) -> tuple[UPath, UPath]:
    _, _, digest = require_artifact_name(name).partition("/")
    return index / KIND / digest, index / COPIES / digest


def _lost(table: UPath, copy: UPath) -> CorruptionError:
    return CorruptionError(
        table,
        f"and {copy} are both damaged or gone, so nobody knows which documents were withdrawn",
        "put one of the two back from a backup; only if every withdrawn document may return, delete both and "
        "index.json, and index again",
    )


def _copy(source: UPath, target: UPath) -> None:
    manifest = require_manifest(source)
    content = read_checked(source, TOMBSTONES)
    if target.exists():
        remove_artifact(target)
    with new_artifact(target, kind=KIND, identity=manifest.identity) as draft:
        (draft.path / TOMBSTONES).write_bytes(content)
        draft.facts |= manifest.facts
