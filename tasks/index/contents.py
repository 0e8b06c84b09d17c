"""What becomes of an index when it is written: its documents are checked, ``index.json`` is put last, remains go."""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import polars as pl
from upath import UPath

from trackstar.storage.errors import InputError, MissingError
from trackstar.storage.index_file import index_bytes
from trackstar.storage.layout import DOCUMENTS, INDEX, KINDS, QUARANTINE, is_draft_name
from trackstar.storage.manifest import Artifact, Manifest, read_manifest
from trackstar.storage.removal import artifacts_of, is_ours, remove_artifact
from trackstar.storage.results import write_text
from trackstar.storage.tables import read_table
from trackstar.storage.tombstone_copies import keep_both
from trackstar.storage.writer import unread
from trackstar.tasks.index.index_file import Index, block_summary, existing_index, read_index, require_same_settings
from trackstar.tasks.index.shards import ShardRequest
from trackstar.tasks.index.withdrawals import read_ids

__all__ = [
    "Index", "block_summary", "each_text", "existing_index", "manifests", "read_index", "require_distinct_ids",
    "require_documents", "require_same_settings", "shard_documents", "shard_texts", "write_index",
]  # fmt: skip

logger = logging.getLogger(__name__)

SHARDS = ShardRequest.kind
IDS_AT_ONCE = 1 << 24  # compared in one piece
NO_DIRECTION = "the gradient is"  # not finite, or zero: no fault of the text
# each from shards or from one before it
DERIVED = ("grams", "autocorrelation", "factors", "spectrum", "train_norms", "fidelity")


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
        raise InputError(f"the corpus has no usable document: {_why_none([shard.path(index) for shard in shards])}")
    require_distinct_ids([shard.path(index) for shard in shards], num_documents=num_documents)
    return tuple(shards)


def missing_artifacts(index: Index) -> list[str]:
    """Names of the artifacts an index is made of that are not there, or are not those it was made of."""
    V, R = index.engine.second_moment, index.autocorrelation
    single = (artifact for artifact in (V, R, index.tombstones, index.fidelity) if artifact)
    named = [*index.shards, *index.grams, *index.engine.kronecker, *single]
    return [artifact.name for artifact in named if not _is_there(index.path / artifact.name, artifact.digest)]


def _is_there(directory: UPath, digest: str) -> bool:
    manifest = read_manifest(directory)
    return manifest is not None and manifest.digest == digest


def _why_none(shards: Sequence[UPath]) -> str:
    """The commonest reason that rows were quarantined for, and what to do about that one."""
    reasons = Counter(reason for shard in shards for reason in read_table(shard, QUARANTINE)["reason"])
    if not reasons:
        return "it has no rows; name files that hold some"
    (reason, count), total = reasons.most_common(1)[0], reasons.total()
    if reason.startswith(NO_DIRECTION):
        cure = "check the checkpoint with `trackstar selfcheck`, and give --dtype float32 or bfloat16"
    else:
        cure = "check the corpus and its text column"
    return f'{count} of {total} quarantined rows have the reason "{reason}"; {cure} (shards/*/quarantine.parquet)'


def write_index(index: Index) -> None:
    """Publish an index, then remove the shards that no longer belong to it, and what rests on what is gone.

    Raises:
        MissingError: Something it is made of is not there, or is another thing by now.
    """
    if index.tombstones is not None:
        keep_both(index.path, index.tombstones.name)
    if missing := missing_artifacts(index):
        raise MissingError(index.path / missing[0], "is not what was just written", "run the same command again")
    write_text(index.path / INDEX, index_bytes(json.loads(index.model_dump_json())).decode())
    with unread(index.path) as is_unread:
        if is_unread:
            _remove_outdated(index)
        else:
            logger.info("What is outdated in %s stays until the next change: it is being read", index.path)


def _remove_outdated(index: Index) -> None:
    """Remove shards that no longer belong, R_train where another has taken its place, and what rests on what is gone.

    These are as large as many documents, and each appended file or withdrawal leaves a set of them behind.
    """
    belonging = {shard.name for shard in index.shards}
    for directory in artifacts_of(index.path / SHARDS):
        if f"{SHARDS}/{directory.name}" not in belonging and is_ours(directory):
            remove_artifact(directory)
    stores = [index.path / kind for kind in KINDS if kind.endswith(SHARDS)]  # other methods have their own
    kept = {manifest.digest for kind in stores for _, manifest in manifests(kind)}
    own = {shard.digest for shard in index.shards}
    current = {artifact.digest for artifact in (index.autocorrelation, index.fidelity) if artifact}
    for kind in DERIVED:
        for directory, manifest in manifests(index.path / kind):
            is_replaced = kind in ("autocorrelation", "fidelity") and not own.isdisjoint(manifest.identity["shards"])
            if _sources(manifest.identity) <= kept and (not is_replaced or manifest.digest in current):
                kept.add(manifest.digest)
            elif is_ours(directory):
                remove_artifact(directory)


def _sources(identity: Mapping[str, Any]) -> set[str]:
    """Digests of the artifacts that one was derived from."""
    single = [identity[name] for name in DERIVED if identity.get(name)]
    return {*identity.get("shards", ()), *single}


def manifests(kind: UPath) -> Iterator[tuple[UPath, Manifest]]:
    """The finished artifacts of a kind, and what their manifests say."""
    for directory in artifacts_of(kind):
        manifest = None if is_draft_name(directory.name) else read_manifest(directory)
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


def shard_documents(shards: Sequence[UPath], ids: Sequence[str]) -> pl.DataFrame:
    """Id, text and, where the text alone does not determine them, tokens of some documents, in the order of the ids."""
    parts = [pl.DataFrame(schema={"id": pl.String, "text": pl.String})]
    for shard in shards:
        table = read_table(shard, DOCUMENTS).select(pl.col("id", "text", "^(input_ids|is_target)$"))
        parts.append(table.filter(pl.col("id").is_in(list(ids))))
    order = pl.DataFrame({"id": list(ids)}, schema={"id": pl.String})
    return order.join(pl.concat(parts, how="diagonal"), on="id", how="left", maintain_order="left")
