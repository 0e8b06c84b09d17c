"""The stage that costs the most: one shard of the corpus into projected gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy import ndarray
from pydantic import Field

from trackstar.storage.codes import StoreAs
from trackstar.storage.corpus import CorpusShard, read_documents
from trackstar.storage.gradients import GradientWriter
from trackstar.storage.layout import DOCUMENTS, QUARANTINE
from trackstar.storage.manifest import Draft
from trackstar.storage.reading import Reading
from trackstar.storage.tables import write_table
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.norms import NormWriter
from trackstar.tasks.models.document_tokens import DocumentTokens, read_tokens, with_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, open_engine
from trackstar.tasks.numerics.batching import windows
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, stage

BATCH_BYTES = 1 << 26  # of one block's rows, which are held until they are written
LARGEST_BATCH = 512

REJECTED_SCHEMA = {"row": pl.UInt64, "id": pl.String, "reason": pl.String}


class ShardRequest(StageRequest):
    """One corpus shard to be turned into gradients."""

    kind: ClassVar[str] = "shards"
    version: ClassVar[int] = 3

    engine: EngineSpec
    shard: CorpusShard
    reading: Reading = Reading()
    id_column: str = "id"
    extra_columns: tuple[str, ...] = ()
    store_as: StoreAs = Field("float32", description="How rows are stored.")

    @property
    def label(self) -> str:
        first, last = self.shard.first_row, self.shard.first_row + self.shard.num_rows - 1
        return f"{self.engine.checkpoint.name} on {self.shard.id_prefix} rows {first}-{last}"

    def inputs(self) -> dict[str, Any]:
        return {
            "engine": self.engine.inputs(),
            "shard": self.shard.identity,
            "columns": [self.reading.text_column, self.id_column, *self.extra_columns],
            **({"reading": reading} if (reading := self.reading.identity()) else {}),
            "store_as": self.store_as,
        }


def shard_requests(
    engine: EngineSpec, corpus: CorpusConfig, shards: Sequence[CorpusShard], *, store_as: StoreAs
) -> list[ShardRequest]:
    columns = {
        "reading": corpus.reading,
        "id_column": corpus.id_column,
        "extra_columns": corpus.extra_columns,
    }
    return [
        ShardRequest(index=engine.index, engine=engine, shard=shard, store_as=store_as, **columns) for shard in shards
    ]


@stage
def index_shard(request: ShardRequest, draft: Draft) -> None:
    """Write the projected gradient of every document of one shard; documents that have none are quarantined."""
    with open_engine(request.engine) as engine:
        _write_shard(request, draft, engine)


def _write_shard(request: ShardRequest, draft: Draft, engine: Engine) -> None:
    writer = GradientWriter(draft.path, engine.block_dims, max_rows=request.shard.num_rows, store_as=request.store_as)
    norms = NormWriter(list(engine.block_dims), store_as=request.store_as)
    tables, rejections = [], []
    columns = {name: getattr(request, name) for name in ("reading", "id_column", "extra_columns")}
    with progress(request.label, total=request.shard.num_rows, unit="documents") as advance:
        for batch in read_documents(request.shard, batch_size=batch_documents(engine.block_dims), **columns):
            table, rejected, vectors = _document_gradients(engine, batch.documents, request.reading)
            writer.append(vectors)
            norms.append(vectors)
            tables.append(table)
            rejections += [batch.rejected, rejected]
            advance(len(batch.documents) + len(batch.rejected))
    writer.close()
    if not tables:
        tables = [_document_table(_no_documents(request.extra_columns), [], np.zeros(0), engine)]
    documents = pl.concat(tables, how="diagonal")
    quarantine = pl.concat(rejections).sort("row") if rejections else pl.DataFrame(schema=REJECTED_SCHEMA)
    write_table(draft.path / DOCUMENTS, documents)
    write_table(draft.path / QUARANTINE, quarantine)
    norms.close(draft)
    draft.facts |= {
        "num_documents": len(documents),
        "num_tokens": int(documents["num_tokens"].sum()),
        "num_quarantined": len(quarantine),
        "block_dims": engine.block_dims,
    }


def _document_gradients(
    engine: Engine, documents: pl.DataFrame, reading: Reading
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, ndarray]]:
    """Document table, rejected rows and block vectors of a batch of documents."""
    found = read_tokens(
        engine.tokenizer,
        documents,
        special_tokens=reading.special_tokens,
        vocabulary_size=engine.model.get_input_embeddings().num_embeddings,
    )
    sequences = [row.ids for row in found]
    losses, vectors = engine.gradients(sequences, first_targets=[row.targets for row in found])
    reasons = _reasons(found, losses, vectors)
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    table = _document_table(with_tokens(documents, found), sequences, losses, engine)
    table = table.filter(pl.Series(kept, dtype=pl.Boolean))
    rejected = documents.select("row", "id").with_columns(reason=pl.Series(reasons, dtype=pl.String))
    if not kept.all():
        vectors = {name: rows[kept] for name, rows in vectors.items()}
    return table, rejected.filter(~pl.Series(kept, dtype=pl.Boolean)), vectors


def _reasons(found: Sequence[DocumentTokens], losses: ndarray, vectors: dict[str, ndarray]) -> list[str | None]:
    """Why a document has no usable gradient, or None."""
    finite, nonzero = np.isfinite(losses), np.zeros(len(losses), dtype=bool)
    for rows in vectors.values():
        low, high = rows.min(axis=1), rows.max(axis=1)  # of NaN, NaN: two passes, and nothing as large as the rows
        finite &= np.isfinite(low) & np.isfinite(high)
        nonzero |= (low != 0) | (high != 0)

    def reason(index: int) -> str | None:
        if found[index].reason is not None:
            return found[index].reason
        if len(found[index].ids) < 2:
            return f"{len(found[index].ids)} token: nothing to predict"
        if not found[index].num_targets:
            return "no token's loss counts"
        if not finite[index]:
            return "the gradient is not finite"
        return None if nonzero[index] else "the gradient is zero"

    return [reason(index) for index in range(len(found))]


def _document_table(
    documents: pl.DataFrame, sequences: Sequence[Sequence[int]], losses: ndarray, engine: Engine
) -> pl.DataFrame:
    lengths = [len(sequence) for sequence in sequences]
    num_windows = np.bincount(
        np.array([window.document for window in windows(lengths, context=engine.context)], dtype=np.int64),
        minlength=len(lengths),
    )
    return documents.with_columns(
        num_tokens=pl.Series(lengths, dtype=pl.UInt32),
        num_windows=pl.Series(num_windows, dtype=pl.UInt32),
        loss=pl.Series(losses, dtype=pl.Float64),
    )


def _no_documents(extra_columns: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(schema={"row": pl.UInt64, **dict.fromkeys(("id", "text", *extra_columns), pl.String)})


def batch_documents(block_dims: Mapping[str, int]) -> int:
    """Documents whose gradients are held together."""
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // (4 * max(block_dims.values()))))
