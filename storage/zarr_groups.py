"""Zarr groups of an artifact: written freely, and read only as the manifest says that they are.

Metadata (``zarr.json``: shapes and types) are compared by SHA-256 before zarr sees them, so that nothing is allocated
for a shape that was not written. A chunk ends in its CRC-32C, which is compared with the one in the manifest; zarr's
codec then finds whether the data before it are what it is of. So a chunk from elsewhere is refused as a damaged one is,
and a pass over the store reads and computes nothing more than it would without.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager

import zarr
from upath import UPath
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from trackstar.storage.errors import CorruptionError
from trackstar.storage.manifest import CHECKSUM_BYTES, Manifest, cure, matches, require_manifest


class CheckedStore(WrapperStore[Store]):
    """The files that a manifest names below one directory of its artifact, each compared with it as it is read."""

    def __init__(self, store: Store, directory: UPath, name: str, manifest: Manifest) -> None:
        super().__init__(store)
        self._directory, self._name = directory, name
        self._digests, self._chunks = (_below(name, files) for files in (manifest.files, manifest.chunks))

    @property
    def read_only(self) -> bool:
        return True

    def with_read_only(self, read_only: bool = True) -> "CheckedStore":
        assert read_only, "what a manifest describes is never written to"
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        assert byte_range is None, "a part of a file cannot be compared with the manifest"
        if key not in self._digests:  # never written: a tile above the diagonal
            return None
        found = await self._store.get(key, prototype)
        if found is None:
            raise self._corruption(key, "is missing from a completed artifact")
        if key in self._chunks:
            if found[-CHECKSUM_BYTES:].to_bytes().hex() != self._chunks[key]:
                raise self._corruption(key, "is not the chunk that was written (its CRC-32C is not the manifest's)")
        elif hashlib.sha256(found.to_bytes()).hexdigest() != self._digests[key]:
            raise self._corruption(key, "differs from what was written (SHA-256 mismatch)")
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._digests

    async def list(self) -> AsyncIterator[str]:
        for key in self._digests:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._digests:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in dict.fromkeys(key[len(start) :].split("/")[0] for key in self._digests if key.startswith(start)):
            yield name

    def _corruption(self, key: str, problem: str) -> CorruptionError:
        return CorruptionError(self._directory / self._name / key, problem, cure(self._directory))


def zarr_store(path: UPath, *, read_only: bool = False) -> Store:
    """What zarr opens: a local directory, or one in an object store."""
    if path.protocol in ("", "file"):
        return LocalStore(path.path, read_only=read_only)
    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options), read_only=read_only)


def read_group(directory: UPath, name: str) -> zarr.Group:
    """A group of a completed artifact, whose every file is compared with the manifest as it is read.

    Raises:
        MissingError: The artifact was never completed.
        CorruptionError: A file of the group is missing, or is not what was written.
    """
    store = CheckedStore(zarr_store(directory / name, read_only=True), directory, name, require_manifest(directory))
    with damage_named(directory, name):
        return zarr.open_group(store, mode="r", zarr_format=3)


@contextmanager
def damage_named(directory: UPath, name: str) -> Iterator[None]:
    """Say which file is damaged when a codec finds that its data are not what their CRC-32C is of.

    Raises:
        CorruptionError: Of the first file below ``name`` that is not what was written.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:  # as which zarr and its codecs report what they cannot read
        for file, digest in require_manifest(directory).files.items():
            if file.startswith(f"{name}/") and not matches(directory / file, digest):
                raise CorruptionError(
                    directory / file, "differs from what was written (SHA-256 mismatch)", cure(directory)
                ) from error
        raise


def _below(name: str, files: Mapping[str, str]) -> dict[str, str]:
    """What is known of the files below a directory, by their names within it."""
    return {file.removeprefix(f"{name}/"): known for file, known in files.items() if file.startswith(f"{name}/")}
