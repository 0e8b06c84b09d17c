"""Documents that were withdrawn: they stay on disk, and take part in nothing.

A tombstone is the id of a document, when it was withdrawn and why. The table of all of them is an artifact named by its
content that ``index.json`` points at; each withdrawal writes the next one, and the earlier ones stay as a record.
"""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy import ndarray
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, TOMBSTONES, location
from trackstar.storage.manifest import Artifact, Draft, require_manifest
from trackstar.storage.tables import read_table, write_table
from trackstar.storage.tombstone_copies import require_sound, tables
from trackstar.tasks.runtime.stage import StageRequest, stage

TOMBSTONE_SCHEMA = {"id": pl.String, "withdrawn_at": pl.String, "reason": pl.String}
SHOWN_IDS = 5


class Withdrawal(BaseModel):
    """What is to be withdrawn.

    Attributes:
        ids: Of documents.
        at: When, in UTC and ISO 8601.
        reason: In a person's words, for those who look later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[str, ...]
    at: str
    reason: str


class TombstoneRequest(StageRequest):
    """The tombstones there are, and one more withdrawal."""

    kind: ClassVar[str] = "tombstones"
    version: ClassVar[int] = 1

    previous: Artifact | None
    withdrawal: Withdrawal

    @property
    def label(self) -> str:
        return f"withdraw {len(self.withdrawal.ids)} documents"

    def inputs(self) -> dict[str, Any]:
        return {"previous": self.previous and self.previous.digest, "withdrawal": self.withdrawal.model_dump()}


@stage
def write_tombstones(request: TombstoneRequest, draft: Draft) -> None:
    """The table of all tombstones, oldest first."""
    withdrawal = request.withdrawal
    new = pl.DataFrame({"id": list(withdrawal.ids)}, schema={"id": pl.String}).with_columns(
        withdrawn_at=pl.lit(withdrawal.at), reason=pl.lit(withdrawal.reason)
    )
    table = pl.concat([read_tombstones(request.previous, request.index), new])
    write_table(draft.path / TOMBSTONES, table)
    draft.facts |= {"num_ids": len(table)}


def read_tombstones(tombstones: Artifact | None, index: str) -> pl.DataFrame:
    """id, withdrawn_at and reason of every tombstone."""
    if tombstones is None:
        return pl.DataFrame(schema=TOMBSTONE_SCHEMA)
    return read_table(tombstones.path(index), TOMBSTONES)


def withdrawn_rows(shards: Sequence[UPath], tombstones: Artifact | None, index: str) -> dict[UPath, ndarray]:
    """The rows of withdrawn documents, ascending, of each shard that has any.

    By id and not by place: a shard that was computed anew, or holds other gradients of the same documents, is covered.
    """
    if tombstones is None:
        return {}
    ids = read_tombstones(tombstones, index)["id"]
    found = {shard: np.flatnonzero(read_ids(shard).is_in(ids.implode()).to_numpy()) for shard in shards}
    return {shard: rows for shard, rows in found.items() if len(rows)}


def newest_tombstones(index: str) -> Artifact | None:
    """The last table of tombstones an index directory holds: an index.json that was lost must bring nothing back.

    Raises:
        CorruptionError: A table cannot be read: which documents were withdrawn is then not known.
    """
    found = []
    for digest in tables(location(index)):
        name = f"{TombstoneRequest.kind}/{digest}"
        require_sound(location(index), name)
        manifest = require_manifest(location(index) / name)
        found.append(Artifact(name=name, digest=manifest.digest, facts=manifest.facts))
    return max(found, key=lambda artifact: artifact.facts["num_ids"], default=None)


def count_withdrawn(*, index: str, shards: Sequence[Artifact], tombstones: Artifact | None) -> int:
    """How many of the shards' documents were withdrawn; a tombstone of a document that is gone counts for none."""
    return sum(map(len, withdrawn_rows([shard.path(index) for shard in shards], tombstones, index).values()))


def read_ids(shard: UPath) -> pl.Series:
    """The ids of a shard's documents; their texts are compared with the manifest and not parsed."""
    return read_table(shard, DOCUMENTS, columns=["id"])["id"]


def new_withdrawal(
    ids: Sequence[str], *, index: str, shards: Sequence[Artifact], tombstones: Artifact | None, at: str, reason: str
) -> Withdrawal | None:
    """What there is to withdraw: None where all of it was withdrawn before.

    Raises:
        InputError: An id is that of no document, or no document would be left.
    """
    before = set(read_tombstones(tombstones, index)["id"])
    wanted = list(dict.fromkeys(id_ for id_ in ids if id_ not in before))
    missing, num_left = set(wanted), 0
    for shard in shards:
        present = set(read_ids(shard.path(index)))
        missing -= present
        num_left += len(present.difference(before, wanted))
    if missing:
        shown = ", ".join(repr(id_) for id_ in wanted if id_ in missing)
        raise InputError(f"the index has no document {_shortened(shown, len(missing))}; give ids as results show them")
    if not num_left:
        raise InputError("that would withdraw every document there is; delete the index instead")
    return Withdrawal(ids=tuple(wanted), at=at, reason=reason) if wanted else None


def new_standing_withdrawal(
    ids: Sequence[str], *, standing: Sequence[Withdrawal], present: Sequence[Collection[str]], at: str, reason: str
) -> Withdrawal | None:
    """What there is to withdraw from every index of a directory: None where all of it was withdrawn before.

    Args:
        present: The documents of each index that are not withdrawn from it.

    Raises:
        InputError: An id is that of no document of any index, or one would be left without a document.
    """
    before = {id_ for withdrawal in standing for id_ in withdrawal.ids}
    wanted = [id_ for id_ in dict.fromkeys(ids) if id_ not in before]
    missing = [id_ for id_ in wanted if not any(id_ in documents for documents in present)]
    if missing:
        shown = ", ".join(map(repr, missing))
        raise InputError(
            f"no index here has a document {_shortened(shown, len(missing))}; give ids as results show them"
        )
    if any(documents and before.union(wanted).issuperset(documents) for documents in present):
        raise InputError("that would withdraw every document of an index; delete that index first")
    return Withdrawal(ids=tuple(wanted), at=at, reason=reason) if wanted else None


def documents_left(*, index: str, shards: Sequence[Artifact], tombstones: Artifact | None) -> set[str]:
    """The ids of the documents of an index that are not withdrawn from it."""
    present = {id_ for shard in shards for id_ in read_ids(shard.path(index))}
    return present.difference(read_tombstones(tombstones, index)["id"])


def pending(standing: Sequence[Withdrawal], left: Collection[str]) -> list[Withdrawal]:
    """Of the withdrawals that hold for every index, what one still has to do."""
    found = [w.model_copy(update={"ids": tuple(id_ for id_ in w.ids if id_ in left)}) for w in standing]
    return [withdrawal for withdrawal in found if withdrawal.ids]


def _shortened(shown: str, count: int) -> str:
    parts = shown.split(", ")
    return shown if count <= SHOWN_IDS else f"{', '.join(parts[:SHOWN_IDS])} and {count - SHOWN_IDS} more"
