"""What an index will cost, before it is built: time, disk and memory.

The corpus's rows are counted. A sample of them goes through the pipeline itself (probe.py), and what that took is
scaled to the corpus; sizes that shapes determine are computed. Nothing is written in the index. What the prediction
leaves out is Prefect: starting its server, and some hundredths of a second a shard.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from pydantic import BaseModel, ConfigDict
from threadpoolctl import threadpool_limits
from upath import UPath

from trackstar.storage.codes import StoreAs
from trackstar.storage.corpus import CorpusShard, plan_shards
from trackstar.storage.gradients import ROWS_AT_ONCE
from trackstar.storage.layout import location
from trackstar.storage.manifest import Artifact
from trackstar.storage.triangles import lower_bytes
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.curvature import LARGEST_BLOCK_DIMS, CurvatureConfig
from trackstar.tasks.index.kronecker import FactorConfig, estimate_factors, kronecker_request
from trackstar.tasks.index.probe import (
    Clock,
    Probe,
    gradient_bytes,
    peak_memory_bytes,
    probe_estimation,
    probe_indexing,
    sample_documents,
)
from trackstar.tasks.index.second_moment import SecondMomentConfig, SecondMomentRequest, write_second_moment
from trackstar.tasks.index.shards import batch_documents
from trackstar.tasks.models.checkpoint import Checkpoint, ModelConfig, read_checkpoint
from trackstar.tasks.models.document_tokens import read_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig, model_blocks, open_engine
from trackstar.tasks.numerics import curvature
from trackstar.tasks.runtime.stage import build

FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
HELD_CHUNKS = 3  # of every block: what the engine returns, what the writer holds, and the two joined
PROBED_SAMPLES = (8, 40)  # documents that Kronecker factors are estimated from to see what they take
HELD_MATRICES = 2  # [d d] of a block that is reduced: the sum, and what is read and written beside it


class BudgetRequest(BaseModel):
    """An index that is not built yet."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    checkpoint: str
    corpus: CorpusConfig
    model: ModelConfig
    gradient: GradientConfig
    second_moment: SecondMomentConfig
    factors: FactorConfig = FactorConfig()
    curvature: CurvatureConfig = CurvatureConfig()
    store_as: StoreAs

    @property
    def mode(self) -> str:
        return self.second_moment.resolve(self.identified)

    @property
    def identified(self) -> Checkpoint:
        return read_checkpoint(self.checkpoint, trust_remote_code=self.model.trust_remote_code)


@dataclass(frozen=True)
class Budget:
    """The prediction.

    Attributes:
        num_documents: Rows of the corpus, counted.
        num_tokens: Of all documents, from the mean of the sampled ones.
        num_tokens_error: Its standard error; 0 where all documents were sampled.
        num_sampled: Documents whose tokens were counted.
        num_probed: Documents that were indexed.
        seconds: By part of the work.
        disk_bytes: By part of the index.
        memory_bytes: Peak of the process.
    """

    num_documents: int
    num_tokens: float
    num_tokens_error: float
    num_sampled: int
    num_probed: int
    seconds: dict[str, float]
    disk_bytes: dict[str, int]
    memory_bytes: int


def predict(request: BudgetRequest, *, clock: Clock = time.monotonic) -> Budget:
    """Probe, and scale to the corpus.

    Args:
        clock: What time is measured by.

    Raises:
        InputError: The checkpoint or the corpus is refused.
    """
    size, reading = request.corpus.shard_size, request.corpus.reading
    shards = [shard for file in request.corpus.files() for shard in plan_shards(file, shard_size=size, reading=reading)]
    documents = sample_documents(shards, request.corpus)
    with tempfile.TemporaryDirectory(prefix="trackstar-budget-") as scratch:
        started = clock()
        spec = _spec(request, scratch)
        reading_s = clock() - started
        factors = _factors(request, spec, shards, clock=clock)
        spec = spec.model_copy(update={"kronecker": factors.artifacts})
        started = clock() - reading_s
        with open_engine(spec) as engine:
            loading_s, loaded_bytes = clock() - started - reading_s, peak_memory_bytes()
            found = read_tokens(engine.tokenizer, documents, special_tokens=reading.special_tokens)
            lengths = np.array([len(row.ids) for row in found])
            second_moment_s, second_moment_bytes = reading_s, _size_bytes(location(scratch) / SecondMomentRequest.kind)
            if request.mode == "estimated":
                num_tokens = lengths.mean() * min(request.second_moment.sample_size, _num_rows(shards))
                second_moment_s = loading_s + num_tokens * probe_estimation(engine, spec, found, clock=clock)
                second_moment_bytes = _factors_bytes(engine, spec)
        probe = probe_indexing(spec, documents, num_tokens=lengths, store_as=request.store_as, clock=clock)
    dims = probe.block_dims
    num_tokens, num_tokens_error = _total_tokens(lengths, num_documents=_num_rows(shards))
    num_summed = min(request.curvature.sample or _num_rows(shards), _num_rows(shards))
    is_flat = request.curvature.resolve(is_white=request.gradient.has_kronecker_factors).autocorrelation == "off"
    reduction = _Reduction(0.0, 0, 0) if is_flat else _reduction(dims, num_documents=num_summed, clock=clock)
    num_sums = 0 if request.curvature.sample else len(shards) / request.curvature.group_shards
    return Budget(
        num_documents=_num_rows(shards),
        num_tokens=num_tokens,
        num_tokens_error=num_tokens_error,
        num_sampled=len(documents),
        num_probed=probe.num_documents,
        seconds={
            "loading the model": loading_s,
            "second moment": second_moment_s,
            **({"Kronecker factors": factors.seconds} if factors.artifacts else {}),
            "gradients": probe.seconds * num_tokens / probe.num_tokens,
            "R_train": reduction.seconds,
        },
        disk_bytes={
            "second moment": second_moment_bytes,
            **({"Kronecker factors": factors.disk_bytes} if factors.artifacts else {}),
            **_shards_disk(shards, probe, store_as=request.store_as),
            "R_train": reduction.disk_bytes,
            "sums kept of runs of shards": round(num_sums * reduction.disk_bytes),
        },
        memory_bytes=max(peak_memory_bytes() + _chunks_to_come(probe, shards), loaded_bytes + reduction.memory_bytes),
    )


def _spec(request: BudgetRequest, scratch: str) -> EngineSpec:
    """The engine as it will be. An estimated V folds into the projection: without one, the same is computed."""
    common: dict[str, Any] = {
        "index": scratch,
        "checkpoint": request.identified,
        "model": request.model,
        "gradient": request.gradient,
    }
    V = None
    if request.mode in ("factored", "full"):
        V = build(write_second_moment.body, SecondMomentRequest(mode=request.mode, **common))
    return EngineSpec(second_moment=V, **common)


class _Factors(NamedTuple):
    artifacts: tuple[Artifact, ...]
    seconds: float
    disk_bytes: int


def _factors(request: BudgetRequest, spec: EngineSpec, shards: Sequence[CorpusShard], *, clock: Clock) -> _Factors:
    """Kronecker factors from two small samples: what both take is paid once, what the larger takes more by document."""
    if not spec.gradient.has_kronecker_factors:
        return _Factors((), 0.0, 0)
    sizes = [min(size, request.factors.sample_size, _num_rows(shards)) for size in PROBED_SAMPLES]
    took = []
    for size in sizes:
        config = request.factors.model_copy(update={"sample_size": size})
        asked = kronecker_request(config, spec, shards=shards, reading=request.corpus.reading)
        started = clock()
        artifacts = estimate_factors(asked, run=lambda stage, stage_request: build(stage.body, stage_request))
        took.append(clock() - started)
    a_document_s = max(took[1] - took[0], 0.0) / max(sizes[1] - sizes[0], 1)
    num_to_come = min(request.factors.sample_size, _num_rows(shards)) - sizes[1]
    disk_bytes = sum(_size_bytes(artifact.path(spec.index)) for artifact in artifacts)
    return _Factors(artifacts, took[1] + num_to_come * a_document_s, disk_bytes)


def _factors_bytes(engine: Engine, spec: EngineSpec) -> int:
    blocks = model_blocks(engine.model, spec.gradient).values()
    return sum(FLOAT64_BYTES * sum(matrix.shape) for block in blocks for matrix in block)


def _total_tokens(lengths: ndarray, *, num_documents: int) -> tuple[float, float]:
    """The mean length of the sample times the documents, and its standard error."""
    share_unseen = max(0.0, 1 - len(lengths) / num_documents)
    deviation = lengths.std(ddof=1) if len(lengths) > 1 else 0.0
    error = num_documents * deviation * (share_unseen / len(lengths)) ** 0.5
    return float(lengths.mean() * num_documents), float(error)


def _shards_disk(shards: Sequence[CorpusShard], probe: Probe, *, store_as: StoreAs) -> dict[str, int]:
    kept = probe.num_kept / probe.num_documents
    chunks = [
        gradient_bytes(probe.block_dims, num_rows=s.num_rows, num_kept=round(s.num_rows * kept), store_as=store_as)
        for s in shards
    ]
    return {
        "gradients": sum(chunks) + len(shards) * probe.metadata_bytes,
        "documents": round(probe.text_bytes / probe.num_documents * _num_rows(shards)),
    }


def _chunks_to_come(probe: Probe, shards: Sequence[CorpusShard]) -> int:
    """What whole chunks take more than the probe's rows did."""
    rows = min(batch_documents(probe.block_dims), max(shard.num_rows for shard in shards))
    return HELD_CHUNKS * FLOAT32_BYTES * max(0, rows - probe.num_documents) * sum(probe.block_dims.values())


class _Reduction(NamedTuple):
    seconds: float
    disk_bytes: int
    memory_bytes: int


def _reduction(block_dims: Mapping[str, int], *, num_documents: int, clock: Clock) -> _Reduction:
    """What R_train takes, from one product of random rows; nothing where blocks are too large for one."""
    dims = list(block_dims.values())
    if max(dims) > LARGEST_BLOCK_DIMS:
        return _Reduction(0.0, 0, 0)
    rows = np.random.default_rng(0).standard_normal((min(ROWS_AT_ONCE, num_documents), max(dims)), dtype=np.float32)
    total = curvature.add_gram(curvature.empty_gram(max(dims)), rows[:1])
    started = clock()
    with threadpool_limits(1, user_api="blas"):
        curvature.add_gram(total, rows)
    a_row_and_dim_s = (clock() - started) / len(rows) / max(dims) ** 2
    at_once = min(os.cpu_count() or 1, len(dims))
    seconds = a_row_and_dim_s * num_documents * sum(d**2 for d in dims) / at_once
    memory_bytes = at_once * HELD_MATRICES * FLOAT64_BYTES * max(dims) ** 2
    return _Reduction(seconds, sum(map(lower_bytes, dims)), memory_bytes)


def _num_rows(shards: Sequence[CorpusShard]) -> int:
    return sum(shard.num_rows for shard in shards)


def _size_bytes(path: UPath) -> int:
    return path.fs.du(path.path) if path.exists() else 0
