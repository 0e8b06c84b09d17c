"""What becomes of an index when it is written: its documents are checked, ``index.json`` is put last, remains go."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import polars as pl
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, INDEX, is_artifact_name, location
from trackstar.storage.locks import is_held
from trackstar.storage.manifest import Artifact, Manifest, read_manifest, remove_tree
from trackstar.storage.results import write_text
from trackstar.storage.tables import read_table
from trackstar.tasks.index.index_file import Index, block_summary, existing_index, read_index, require_same_settings
from trackstar.tasks.index.shards import ShardRequest
from trackstar.tasks.index.withdrawals import read_ids

__all__ = [
    "Index", "block_summary", "each_text", "existing_index", "manifests", "read_index", "require_distinct_ids",
    "require_documents", "require_same_settings", "shard_texts", "write_index",
]  # fmt: skip

SHARDS = ShardRequest.kind
IDS_AT_ONCE = 1 << 24  # compared in one piece
DERIVED = ("grams", "autocorrelation", "factors", "spectrum", "train_norms")  # each from shards or from one before it


def require_distinct_ids(shards: Sequence[UPath], *, num_documents: int) -> None:
    """Refuse a corpus in which two documents share an id: a result could not say which of them it means.

    Raises:
        InputError: Names such an id.
    """
    num_shared, example = 0, None
    num_parts = ceil(num_documents / IDS_AT_ONCE)
    for number in range(num_parts):
        # equal ids have equal hashes, so they meet in one part
        ids = pl.concat([ids.filter(ids.hash() % num_parts == number) for ids in map(read_ids, shards)])
        shared = ids.filter(ids.is_duplicated())
        num_shared += len(shared)
        example = example or next(iter(shared), None)
    if num_shared:
        raise InputError(
            f"{num_shared} documents share their id with another, {example!r} for one; give --id-column another "
            "column, or one that no document has, to call them by file and row"
        )


def require_documents(shards: Sequence[Artifact], *, index: str) -> tuple[Artifact, ...]:
    """All shards, those without a usable document too: what they quarantined counts.

    Raises:
        InputError: No shard has a document, or two documents have one id.
    """
    num_documents = sum(shard.facts["num_documents"] for shard in shards)
    if not num_documents:
        num_quarantined = sum(shard.facts["num_quarantined"] for shard in shards)
        raise InputError(
            f"the corpus has no usable document: {num_quarantined} rows were quarantined; see the reasons in "
            "shards/*/quarantine.parquet, and check the text column and the checkpoint"
        )
    require_distinct_ids([shard.path(index) for shard in shards], num_documents=num_documents)
    return tuple(shards)


def write_index(index: Index) -> None:
    """Publish an index, then remove the shards that no longer belong to it, and what rests on what is gone."""
    write_text(index.path / INDEX, index.model_dump_json(indent=1) + "\n")
    kept = {location(index.path / shard.name).name for shard in index.shards}
    for directory in list((index.path / SHARDS).iterdir()):
        if directory.name not in kept and not is_held(directory):  # another run may be writing it
            remove_tree(directory)
    _remove_outdated(index)


def _remove_outdated(index: Index) -> None:
    """Remove R_train where another has taken its place, and whatever was derived from something that is gone.

    They are as large as many documents, and each appended file or withdrawal leaves a set of them behind.
    """
    stores = [kind for kind in index.path.iterdir() if kind.name.endswith(SHARDS)]  # other methods have their own
    kept = {manifest.digest for kind in stores for _, manifest in manifests(kind)}
    own = {shard.digest for shard in index.shards}
    current = index.autocorrelation and index.autocorrelation.digest
    for kind in DERIVED:
        for directory, manifest in manifests(index.path / kind):
            is_replaced = kind == "autocorrelation" and not own.isdisjoint(manifest.identity["shards"])
            if _sources(manifest.identity) <= kept and (not is_replaced or manifest.digest == current):
                kept.add(manifest.digest)
            else:
                remove_tree(directory)


def _sources(identity: Mapping[str, Any]) -> set[str]:
    """Digests of the artifacts that one was derived from."""
    single = [identity[name] for name in DERIVED if identity.get(name)]
    return {*identity.get("shards", ()), *single}


def manifests(kind: UPath) -> Iterator[tuple[UPath, Manifest]]:
    for directory in list(kind.iterdir()) if kind.is_dir() else []:
        manifest = read_manifest(directory) if is_artifact_name(directory.name) else None
        if manifest is not None:
            yield directory, manifest


def each_text(shards: Sequence[UPath], *, without: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Id and text of every document, in corpus order, a shard in memory at a time; those of withdrawn ones left out."""
    for shard in shards:
        rows = read_table(shard, DOCUMENTS).select("id", "text").iter_rows()
        yield from (row for row in rows if row[0] not in without)


def shard_texts(shards: Sequence[UPath], ids: Collection[str]) -> dict[str, str]:
    """The texts of some documents by id, in corpus order."""
    return {id_: text for id_, text in each_text(shards) if id_ in ids}
