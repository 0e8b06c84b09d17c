"""Identity and completion: an artifact exists when its manifest does, and the manifest names what determined its bytes.

A manifest holds the digest of its own bytes and one of every file, so that whatever is read is compared with what was
written. An artifact is written to a temporary sibling directory, its manifest last, and then renamed into place. On an
object store, where a rename is a copy, files go to their final names at once and the manifest is still the last
of them: until it is there, the artifact is not. Two writers of one artifact write the same bytes; locally each has a
sibling directory of its own, and the second to finish gives way.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import google_crc32c
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.digests import digest_file, digest_of
from trackstar.storage.errors import CorruptionError, FullError, MissingError
from trackstar.storage.layout import MANIFEST, is_draft_name, is_link, is_local, location, require_artifact_name
from trackstar.storage.locks import claimed
from trackstar.storage.removal import artifacts_of, delete, new_draft_path, remove_artifact
from trackstar.storage.sealed import sealed, unsealed

CHECKSUM_BYTES = 4  # of the CRC-32C that a chunk ends with
CHECKSUM_RESIDUE = 0x48674BC7  # the CRC-32C of any bytes that end in their own
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_WORDS = "(os error 28)"
BUILT_BY_INDEX = frozenset({"second_moment", "kronecker", "variances", "shards", "grams", "autocorrelation"})


class Manifest(BaseModel):
    """What an artifact is, and what each of its files must hold.

    Attributes:
        identity: What determined the bytes.
        facts: What is known about them.
        files: SHA-256 of each file.
        chunks: The CRC-32C that each chunk of a Zarr array ends with, as it stands there, in hexadecimal digits: a pass
            compares it at no cost, where a SHA-256 of every chunk would double what the pass costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]
    chunks: dict[str, str]

    @property
    def digest(self) -> str:
        """Digest of the content: two artifacts with the same files have the same one."""
        return digest_of(self.files)


class Artifact(BaseModel):
    """A small reference to something finished on disk; what one step hands to the next.

    Attributes:
        name: Its directory, relative to the index, so that an index can be moved.
        digest: Digest of its files.
        facts: What is worth knowing without opening it: counts, for the most part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(require_artifact_name)]
    digest: str
    facts: dict[str, Any]

    def path(self, index: str) -> UPath:
        """Its directory, after what lies there was found to be what this refers to.

        Raises:
            MissingError: Nothing completed lies there.
            CorruptionError: Another artifact does, or its manifest was changed.
        """
        directory = location(index) / self.name
        found = require_manifest(directory).digest
        if found != self.digest:
            problem = f"holds other files than those that were referred to ({found[:16]} and not {self.digest[:16]})"
            raise CorruptionError(directory, problem, cure(directory))
        return directory


@dataclass
class Draft:
    """An artifact being written: put files under ``path`` and results worth knowing into ``facts``."""

    path: UPath
    facts: dict[str, Any] = field(default_factory=dict)


def read_manifest(directory: UPath) -> Manifest | None:
    """The manifest of a completed artifact, or None where there is none.

    Raises:
        CorruptionError: There is a manifest and it cannot be read.
    """
    path = directory / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Manifest.model_validate(unsealed(text))
    except ValueError as error:  # a ValidationError is one: sealed by a version that knew other fields
        problem = "is no manifest of this version" if isinstance(error, ValidationError) else str(error)
        raise CorruptionError(path, problem, cure(directory)) from error


def require_manifest(directory: UPath) -> Manifest:
    """The manifest of an artifact that must be there.

    Raises:
        MissingError: The artifact was never completed.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise MissingError(directory, "holds no completed artifact", cure(directory))
    return manifest


def is_complete(directory: UPath, identity: Mapping[str, Any]) -> bool:
    """Whether the artifact is there and was made from exactly this identity."""
    manifest = read_manifest(directory)
    return manifest is not None and digest_of(manifest.identity) == digest_of(dict(identity))


@contextmanager
def new_artifact(directory: UPath, *, kind: str, identity: Mapping[str, Any]) -> Iterator[Draft]:
    """Write an artifact as a whole: whatever interrupts the block, a reader sees all of it or nothing.

    Raises:
        FullError: There was no room for it.
    """
    _remove_leftovers(directory, identity)
    with _new_draft(directory) as draft:
        try:
            yield draft
            write_manifest(draft, kind=kind, identity=identity)
            if draft.path != directory:
                _publish(draft.path, directory, identity)
        except BaseException as error:  # refused, failed or interrupted: of use to nobody
            full = _full(draft.path, directory) if is_full(error) else None
            if draft.path != directory:
                delete(draft.path)
            if full is not None:
                raise full from error
            raise


def write_manifest(draft: Draft, *, kind: str, identity: Mapping[str, Any]) -> None:
    """Write down what all files of a draft hold, which completes it."""
    files, chunks = {}, {}
    for name in _file_names(draft.path):
        if _is_chunk(name):
            files[name], chunks[name] = _chunk_digests(draft.path / name)
        elif name != MANIFEST:
            files[name] = digest_file(draft.path / name)
    manifest = Manifest(kind=kind, identity=dict(identity), facts=draft.facts, files=files, chunks=chunks)
    (draft.path / MANIFEST).write_bytes(sealed(json.loads(manifest.model_dump_json())))


def read_checked(directory: UPath, name: str) -> bytes:
    """The bytes of one file of an artifact, compared with the digest its manifest holds.

    Raises:
        CorruptionError: The bytes are not those that were written.
    """
    manifest = require_manifest(directory)
    path = directory / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CorruptionError(path, "is missing from a completed artifact", cure(directory)) from None
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise CorruptionError(path, "differs from what was written (SHA-256 mismatch)", cure(directory))
    return content


def damaged_files(directory: UPath) -> list[str]:
    """Names of the files of a completed artifact that are missing or differ from what was written."""
    manifest = require_manifest(directory)
    return [name for name, digest in manifest.files.items() if not matches(directory / name, digest)]


def cure(directory: UPath) -> str:
    """What to do about a damaged or missing artifact."""
    then = "`trackstar index`" if directory.parent.name in BUILT_BY_INDEX else "the same command"
    return f"run `trackstar verify {directory.parent.parent} --repair`, then {then} again: only this part is rebuilt"


def matches(path: UPath, digest: str) -> bool:
    """Whether a file is there, is no link, and has this SHA-256."""
    return path.is_file() and not is_link(path) and digest_file(path) == digest


def is_full(error: BaseException) -> bool:
    """Whether something could not be written as there is no room; what is written in Rust says so in words."""
    return getattr(error, "errno", None) in FULL_ERRNOS or FULL_WORDS in str(error)


def _full(draft: UPath, directory: UPath) -> FullError:
    written = draft.fs.du(draft.path) / 2**20
    free = f" and {shutil.disk_usage(str(draft)).free / 2**20:,.1f} MiB were free" if is_local(draft) else ""
    cure = "make room and give the same command again: what was finished is kept"
    return FullError(directory, f"does not fit on its disk: {written:,.1f} MiB of it were written{free}", cure)


def _file_names(directory: UPath) -> list[str]:
    """Relative names of all files below a directory, sorted."""
    root = directory.path.rstrip("/") + "/"
    return sorted(path.removeprefix(root) for path in directory.fs.find(directory.path))


@contextmanager
def _new_draft(directory: UPath) -> Iterator[Draft]:
    """A directory to write an artifact in, held as long as it is written; on an object store, the artifact's own."""
    if not is_local(directory):
        directory.mkdir(parents=True, exist_ok=True)
        yield Draft(directory)
        return
    while True:
        path = new_draft_path(directory)
        path.mkdir(parents=True)
        with claimed(path) as is_there:
            if is_there:  # else another process took it, before it was held, for what a killed one left behind
                yield Draft(path)
                return


def _publish(draft: UPath, directory: UPath, identity: Mapping[str, Any]) -> None:
    """Give a draft its name, unless another writer was first."""
    try:
        draft.rename(directory)
    except OSError:
        if not is_complete(directory, identity):
            raise
        delete(draft)


def _remove_leftovers(directory: UPath, identity: Mapping[str, Any]) -> None:
    """Clear what interrupted writers of this kind left behind, and an artifact of another identity.

    Raises:
        StorageError: Something is in the artifact's place that is not ours.
    """
    if is_local(directory):
        for leftover in list(artifacts_of(directory.parent)):
            if is_draft_name(leftover.name):
                remove_artifact(leftover)  # unless a living process writes it
    is_there = is_link(directory) or directory.exists()  # before it is read: another writer may publish it meanwhile
    if is_there and not is_complete(directory, identity):
        remove_artifact(directory)


def _is_chunk(name: str) -> bool:
    return ".zarr/" in name and not name.endswith("/zarr.json")


def _chunk_digests(chunk: UPath) -> tuple[str, str]:
    """SHA-256 of a chunk, and the CRC-32C that it ends with."""
    content = chunk.read_bytes()
    assert google_crc32c.value(content) == CHECKSUM_RESIDUE, f"{chunk} does not end in its CRC-32C: Crc32cCodec is last"
    return hashlib.sha256(content).hexdigest(), content[-CHECKSUM_BYTES:].hex()
