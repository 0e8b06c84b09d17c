"""Where a document of an index comes from, step by step, and which answers stood on it."""

from pydantic import BaseModel, ConfigDict

from trackstar.storage.corpus import corpus_files
from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, RESULTS, location
from trackstar.storage.manifest import Manifest, require_manifest
from trackstar.storage.results import answers_with
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.withdrawals import read_tombstones
from trackstar.tasks.reindex.checkpoints import step_of


class Lineage(BaseModel):
    """One document, backwards to what it was made from and forwards to what was made of it.

    Attributes:
        shard: The directory that holds its gradient.
        file: The corpus file, where it lies now; its name alone where no path of the index's settings leads to it.
        row: Of that file, the first being 0.
        checkpoint_digest: Of the model's files, as they were when the gradient was taken.
        step: Of training, as far as the checkpoint's directory says it.
        code: The stage that computed it, with its version.
        withdrawn: When and why, or None.
        answers: Result directories beside the index that show it, with the queries; None: cannot be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    index: str
    shard: str
    file: str
    row: int
    checkpoint: str
    checkpoint_digest: str
    step: int | None
    code: str
    withdrawn: str | None
    answers: dict[str, list[str] | None]


def lineage(index: Index, id_: str) -> Lineage:
    """Follow a document of an index.

    Raises:
        InputError: The index has no such document.
    """
    for shard in index.shard_paths:
        found = read_table(shard, DOCUMENTS, columns=["row", "id"])
        rows = found.filter(found["id"] == id_)["row"]
        if len(rows):
            break
    else:
        raise InputError(f"{index.path} has no document {id_!r}; give an id as results show it")
    manifest = require_manifest(shard)
    checkpoint = index.engine.checkpoint
    return Lineage(
        id=id_,
        index=str(index.path),
        shard=str(shard),
        file=_file(index, manifest),
        row=rows[0],
        checkpoint=checkpoint.path,
        checkpoint_digest=checkpoint.digest,
        step=step_of(location(checkpoint.path)),
        code=f"stage {manifest.identity['stage']}, version {manifest.identity['version']}",
        withdrawn=_withdrawn(index, id_),
        answers=answers_with(index.path.parent / RESULTS, {id_}),
    )


def _file(index: Index, manifest: Manifest) -> str:
    """A shard knows its file by name, so that it stays what it is where the file is moved."""
    name = manifest.identity["shard"]["id_prefix"]
    try:
        return next((file.path for file in corpus_files(index.corpus.paths) if file.id_prefix == name), name)
    except InputError:  # the corpus is not where it was
        return name


def _withdrawn(index: Index, id_: str) -> str | None:
    table = read_tombstones(index.tombstones, str(index.path))
    rows = table.filter(table["id"] == id_).rows(named=True)
    return f"{rows[0]['withdrawn_at']} {rows[0]['reason']}".strip() if rows else None
