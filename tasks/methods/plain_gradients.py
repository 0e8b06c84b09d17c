"""A second store of the same documents, for methods that do not divide gradients by √V, or look at other checkpoints.

It is made from the documents that the index holds, so that the corpus need not be there any more, and only when a
method asks for it. It lies beside the index's own shards and is found again by what determines it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy import ndarray

from trackstar.storage.codes import StoreAs
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientWriter
from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.index.norms import NormWriter
from trackstar.tasks.index.shards import batch_documents
from trackstar.tasks.models.checkpoint import Checkpoint
from trackstar.tasks.models.document_tokens import kept_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, open_engine
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, gather, stage


class PlainShardRequest(StageRequest):
    """The documents of one shard of an index, to be turned into gradients of another kind."""

    kind: ClassVar[str] = "plain_shards"
    version: ClassVar[int] = 2

    engine: EngineSpec
    documents: Artifact
    store_as: StoreAs = "float32"

    @property
    def label(self) -> str:
        return f"{self.engine.checkpoint.name} without V on {self.documents.facts['num_documents']} documents"

    def inputs(self) -> dict[str, Any]:
        return {"engine": self.engine.inputs(), "documents": self.documents.digest, "store_as": self.store_as}


def plain_index(index: Index, *, checkpoint: Checkpoint | None = None) -> Index:
    """The same documents with gradients that are not divided by √V, at the index's checkpoint or at another one.

    It has no R_train; see ``with_autocorrelation``.
    """
    engine = index.engine.uncorrected()
    if checkpoint is not None:
        engine = engine.model_copy(update={"checkpoint": checkpoint})
    if engine.inputs() == index.engine.inputs():
        return index
    requests = [PlainShardRequest(index=str(index.path), engine=engine, documents=shard) for shard in index.shards]
    shards = tuple(gather(write_plain_shard.map(requests)))
    curvature = index.curvature.model_copy(update={"autocorrelation": "on"})  # of the index's own choice it knows none
    changes = {"engine": engine, "shards": shards, "curvature": curvature, "autocorrelation": None}
    return index.model_copy(update=changes)


def with_autocorrelation(index: Index, *, dask: str) -> Index:
    """The index with its R_train, where that is feasible."""
    request = AutocorrelationRequest(index=str(index.path), shards=index.shards, tombstones=index.tombstones, dask=dask)
    if index.autocorrelation is not None or not request.is_feasible:
        return index
    return index.model_copy(update={"autocorrelation": write_autocorrelation(request)})


@stage
def write_plain_shard(request: PlainShardRequest, draft: Draft) -> None:
    """Write the gradient of every document of one shard of the index, in the same order."""
    documents = read_table(request.documents.path(request.index), DOCUMENTS)
    with open_engine(request.engine) as engine:
        rows = batch_documents(engine.block_dims)
        writer = GradientWriter(draft.path, engine.block_dims, max_rows=len(documents), store_as=request.store_as)
        norms = NormWriter(list(engine.block_dims), store_as=request.store_as)
        with progress(request.label, total=len(documents), unit="documents") as advance:
            for part in documents.iter_slices(rows):
                vectors = _gradients(engine, part)
                writer.append(vectors)
                norms.append(vectors)
                advance(len(part))
        writer.close()
    write_table(draft.path / DOCUMENTS, documents)
    norms.close(draft)
    draft.facts |= {"num_documents": len(documents), "block_dims": engine.block_dims}


def _gradients(engine: Engine, documents: pl.DataFrame) -> dict[str, ndarray]:
    found = kept_tokens(engine.tokenizer, documents)
    sequences = [row.ids for row in found]
    _, vectors = engine.gradients(sequences, first_targets=[row.targets for row in found])
    _require_usable(documents["id"], sequences, vectors)
    return vectors


def _require_usable(ids: pl.Series, sequences: Sequence[Sequence[int]], vectors: dict[str, ndarray]) -> None:
    """Every document of the index has a gradient here too; without it a ranking would lack a candidate."""
    usable = np.array([len(sequence) > 1 for sequence in sequences])
    for rows in vectors.values():
        usable &= np.isfinite(rows).all(axis=1)
    if not usable.all():
        raise InputError(
            f"document {ids[int(np.argmin(usable))]!r} has a gradient in the index and none without V; leave out "
            "the methods no_v, trak, grad_dot and grad_cosine, or remove the document from the corpus"
        )
