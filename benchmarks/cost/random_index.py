"""An index of random gradients, as large as asked, for the benchmarks: no model and no corpus behind it.

Rows are Gaussian with a spectrum that falls like 1/√component, so that R_train is neither the identity nor singular.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from upath import UPath

from trackstar.storage.codes import StoreAs
from trackstar.storage.gradients import GradientWriter
from trackstar.storage.layout import DOCUMENTS, QUERIES, QUERY_VECTORS
from trackstar.storage.manifest import Artifact, is_complete, new_artifact, require_manifest
from trackstar.storage.matrices import write_arrays
from trackstar.storage.tables import write_table
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.runtime.stage import Stage, StageRequest, build
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    write_factors,
    write_spectrum,
    write_train_norms,
)

ROWS_AT_ONCE = 512
NUM_WORDS, VOCABULARY_SIZE = 30, 20_000  # of a text


def blocks(num_blocks: int, num_dims: int) -> dict[str, int]:
    return {f"mlp.{number:02d}": num_dims for number in range(num_blocks)}


def random_shards(
    index: UPath,
    *,
    num_documents: int,
    block_dims: dict[str, int],
    shard_size: int = 2048,
    store_as: StoreAs = "float16",
) -> tuple[Artifact, ...]:
    starts = range(0, num_documents, shard_size)
    return tuple(_shard(index, start, min(shard_size, num_documents - start), block_dims, store_as) for start in starts)


def random_queries(index: UPath, num_queries: int, block_dims: dict[str, int]) -> Artifact:
    name = UPath(index / "queries" / f"{num_queries:016x}")
    if not is_complete(name, {}):
        with new_artifact(name, kind="queries", identity={}) as draft:
            rng = np.random.default_rng(num_queries)
            vectors = {block: _rows(rng, num_queries, dims) for block, dims in block_dims.items()}
            write_arrays(draft.path / QUERY_VECTORS, vectors)
            ids = [f"q{number}" for number in range(num_queries)]
            write_table(draft.path / QUERIES, pl.DataFrame({"query_id": ids}))
            draft.facts["num_queries"] = num_queries
    return _reference(index, f"queries/{name.name}")


def whitened(index: UPath, shards: Sequence[Artifact], R: Artifact, *, damping: float) -> tuple[Artifact, Artifact]:
    """Factors and norms."""
    factors = build(write_factors.body, FactorRequest(index=str(index), autocorrelation=R, damping=damping))
    norms = build(write_train_norms.body, TrainNormsRequest(index=str(index), shards=tuple(shards), factors=factors))
    return factors, norms


def through_every_stage(
    index: UPath, shards: tuple[Artifact, ...], queries: Artifact, run: Callable[[Stage, StageRequest], Artifact]
) -> None:
    """From the store to a ranking; ``run`` builds each stage's request, and measures what it came to measure."""
    common = {"index": str(index), "shards": shards}
    R = run(write_autocorrelation, AutocorrelationRequest(**common))
    factors = run(write_factors, FactorRequest(index=str(index), autocorrelation=R, damping=0.1))
    spectrum = run(write_spectrum, SpectrumRequest(autocorrelation=R, **common))
    norms = run(write_train_norms, TrainNormsRequest(factors=factors, **common))
    whitening = {"factors": factors, "spectrum": spectrum, "train_norms": norms, **common}
    run(rank_candidates, ScoreRequest(method="trackstar", config=ScoreConfig(), queries=queries, **whitening))


def _shard(index: UPath, start: int, count: int, block_dims: dict[str, int], store_as: StoreAs) -> Artifact:
    name = f"{start:016x}"
    identity = {"rows": count, "dims": block_dims, "store_as": store_as}
    if not is_complete(index / "shards" / name, identity):
        with new_artifact(index / "shards" / name, kind="shards", identity=identity) as draft:
            writer = GradientWriter(draft.path, block_dims, max_rows=count, store_as=store_as)
            rng = np.random.default_rng(start)
            for first in range(0, count, ROWS_AT_ONCE):
                rows = min(ROWS_AT_ONCE, count - first)
                writer.append({block: _rows(rng, rows, dims) for block, dims in block_dims.items()})
            writer.close()
            ids = [f"d{start + row}" for row in range(count)]
            write_table(draft.path / DOCUMENTS, pl.DataFrame({"id": ids, "text": _texts(rng, count)}))
            draft.facts |= {"num_documents": count, "block_dims": block_dims}
    return _reference(index, f"shards/{name}")


def _texts(rng: np.random.Generator, count: int) -> list[str]:
    """Words as often as in a language, from a vocabulary that does not grow with the corpus."""
    words = np.minimum(rng.zipf(1.2, size=(count, NUM_WORDS)), VOCABULARY_SIZE)
    return [" ".join(f"w{word}" for word in of_text) for of_text in words]


def _rows(rng: np.random.Generator, count: int, num_dims: int) -> np.ndarray:
    rows = rng.standard_normal((count, num_dims), dtype=np.float32)
    rows /= np.sqrt(np.arange(1, num_dims + 1, dtype=np.float32))
    return rows


def _reference(index: UPath, name: str) -> Artifact:
    manifest = require_manifest(index / name)
    return Artifact(name=name, digest=manifest.digest, facts=manifest.facts)
