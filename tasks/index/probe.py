"""A few documents of a corpus through the pipeline itself, into a scratch directory: what did that take?"""

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import polars as pl
import torch
from numpy import ndarray

from trackstar.storage.codes import CODES, StoreAs
from trackstar.storage.corpus import CorpusFile, CorpusShard, plan_shards, read_documents
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import rows_of_a_chunk
from trackstar.storage.layout import DOCUMENTS, location
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.shards import ShardRequest, index_shard
from trackstar.tasks.models.document_tokens import DocumentTokens
from trackstar.tasks.models.engine import Engine, EngineSpec, decoder_matrices
from trackstar.tasks.numerics.batching import batches, pad, windows
from trackstar.tasks.numerics.corrections.factored_v import estimation_taps
from trackstar.tasks.numerics.taps import TappedModel
from trackstar.tasks.runtime.stage import build

PROBED_SHARDS = 8
PROBED_BATCHES = 2
SHORTEST_PROBE_S = 2.0
GROWTH = 4
CHECKSUM_BYTES = 4
NORM_BYTES = 8

Clock = Callable[[], float]


@dataclass(frozen=True)
class Probe:
    """What the documents took.

    Attributes:
        num_documents: How many there were.
        num_kept: How many have a gradient.
        num_tokens: Their tokens.
        seconds: From reading them to the finished shard, the engine loaded.
        text_bytes: Of the document table.
        metadata_bytes: Of a shard, whatever its size.
        block_dims: Of each block.
    """

    num_documents: int
    num_kept: int
    num_tokens: int
    seconds: float
    text_bytes: int
    metadata_bytes: int
    block_dims: dict[str, int]


def sample_documents(shards: Sequence[CorpusShard], corpus: CorpusConfig) -> pl.DataFrame:
    """The documents of a few random shards, in random order.

    Raises:
        InputError: They have none.
    """
    rng = np.random.default_rng(0)
    chosen = [shards[index] for index in rng.permutation(len(shards))[:PROBED_SHARDS]]
    columns = {"reading": corpus.reading, "id_column": corpus.id_column}
    parts = [batch.documents for shard in chosen for batch in read_documents(shard, batch_size=1024, **columns)]
    if not sum(map(len, parts)):
        raise InputError(f"none of {len(chosen)} shards of {len(shards)} has a usable document; check the corpus")
    documents = pl.concat(parts, how="diagonal")
    return documents[rng.permutation(len(documents))]


def probe_indexing(
    spec: EngineSpec, documents: pl.DataFrame, *, num_tokens: ndarray, store_as: StoreAs, clock: Clock
) -> Probe:
    """Index the first documents; if that took too little time to be measured, again with more."""
    ends, wanted = np.cumsum(num_tokens), PROBED_BATCHES * spec.model.token_budget
    while True:
        count = min(int(np.searchsorted(ends, wanted)) + 1, len(documents))
        probe = _index(spec, documents[:count], store_as=store_as, clock=clock)
        if probe.seconds >= SHORTEST_PROBE_S or count == len(documents):
            return probe
        wanted *= GROWTH


def probe_estimation(engine: Engine, spec: EngineSpec, found: Sequence[DocumentTokens], *, clock: Clock) -> float:
    """Seconds a token of an estimated second moment, from one batch of these documents."""
    found = [row for row in found if row.num_targets]
    sequences, targets = [row.ids for row in found], [row.targets for row in found]
    matrices = decoder_matrices(engine.model, spec.gradient)
    cut = windows([len(ids) for ids in sequences], context=engine.context)
    batch = next(batches(cut, token_budget=spec.model.token_budget))
    tokens, chosen = (torch.from_numpy(array).to(engine.device) for array in pad(batch, sequences, targets))
    with TappedModel(engine.model, estimation_taps(matrices, device=engine.device)) as tapped:
        started = clock()
        tapped.backward(tokens, chosen)
        return (clock() - started) / sum(window.num_tokens for window in batch)


def gradient_bytes(block_dims: Mapping[str, int], *, num_rows: int, num_kept: int, store_as: StoreAs) -> int:
    """Bytes of a shard's chunks, whole ones with a checksum each, the last one filled up, and of its norms."""
    code, rows = CODES[store_as], rows_of_a_chunk(block_dims, max_rows=num_rows, store_as=store_as)
    num_arrays = len(block_dims) + code.has_scales
    chunk_bytes = rows * sum(map(code.row_bytes, block_dims.values())) + num_arrays * CHECKSUM_BYTES
    return num_kept * NORM_BYTES * len(block_dims) + ceil(num_kept / rows) * chunk_bytes


def peak_memory_bytes() -> int:
    """The most this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _index(spec: EngineSpec, documents: pl.DataFrame, *, store_as: StoreAs, clock: Clock) -> Probe:
    path = location(spec.index) / f"sample-{len(documents)}.jsonl"
    rows = documents.select(pl.col("id", "text", "^source$")).iter_rows(named=True)
    lines = (
        json.dumps(
            {"id": row["id"], **(json.loads(source) if (source := row.get("source")) else {"text": row["text"]})}
        )
        for row in rows
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    started = clock()
    (shard,) = plan_shards(CorpusFile(path=str(path), id_prefix=path.name), shard_size=len(documents))
    artifact = build(index_shard.body, ShardRequest(index=spec.index, engine=spec, shard=shard, store_as=store_as))
    seconds = clock() - started
    directory, facts = artifact.path(spec.index), artifact.facts
    text_bytes = (directory / DOCUMENTS).stat().st_size
    chunks = gradient_bytes(
        facts["block_dims"], num_rows=shard.num_rows, num_kept=facts["num_documents"], store_as=store_as
    )
    return Probe(
        num_documents=len(documents),
        num_kept=facts["num_documents"],
        num_tokens=facts["num_tokens"],
        seconds=seconds,
        text_bytes=text_bytes,
        metadata_bytes=directory.fs.du(directory.path) - chunks - text_bytes,
        block_dims=facts["block_dims"],
    )
