"""What a store of fewer bits loses, measured on a sample of its documents: how far scores are those of float32."""

from typing import Any, ClassVar

import numpy as np
import polars as pl

from trackstar.storage.codes import StoreAs
from trackstar.storage.layout import DOCUMENTS, FIDELITY
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import write_arrays
from trackstar.storage.tables import read_table
from trackstar.tasks.index.curvature import IndexedShards, ShardRows, block_rows, used_rows
from trackstar.tasks.models.document_tokens import kept_tokens
from trackstar.tasks.models.engine import EngineSpec, open_engine
from trackstar.tasks.numerics.fidelity import fidelity
from trackstar.tasks.runtime.stage import stage

LARGEST_SAMPLE = 256
SAMPLE_BYTES = 1 << 28  # of its vectors in float32
SMALLEST_SAMPLE = 3
TOP_K = 10


class FidelityRequest(IndexedShards):
    """The documents of some finished shards, a sample of which is computed again in float32."""

    kind: ClassVar[str] = "fidelity"
    version: ClassVar[int] = 1

    engine: EngineSpec
    seed: int = 0

    @property
    def label(self) -> str:
        return f"loss of the store of {self.num_documents} documents"

    @property
    def sample_size(self) -> int:
        row_bytes = 4 * sum(self.block_dims.values())
        return min(LARGEST_SAMPLE, SAMPLE_BYTES // row_bytes)

    @property
    def sampled(self) -> list[ShardRows]:
        """The rows of the sample; none where it would be too small to say anything."""
        num_live = self.num_documents - sum(map(len, self.withdrawn().values()))
        if min(self.sample_size, num_live) < SMALLEST_SAMPLE:
            return []
        return used_rows(self, self.withdrawn(), sample=(self.sample_size, self.seed))

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "seed": self.seed}


@stage
def write_fidelity(request: FidelityRequest, draft: Draft) -> None:
    """Write the overlap and the correlation of every sampled document, asked for by its float32 vector."""
    sampled = request.sampled
    tables = [read_table(path, DOCUMENTS)[rows.tolist()] for path, rows in sampled]
    with open_engine(request.engine) as engine:
        documents = kept_tokens(engine.tokenizer, pl.concat(tables, how="diagonal"))
        _, exact = engine.gradients([row.ids for row in documents], first_targets=[row.targets for row in documents])
    stored = {block: np.concatenate(list(block_rows(sampled, block))) for block in request.block_dims}
    overlaps, correlations = fidelity(exact, stored, top_k=TOP_K)
    write_arrays(draft.path / FIDELITY, {"overlaps": overlaps, "correlations": correlations})
    draft.facts |= {
        "num_documents": len(overlaps),
        "top_k": min(TOP_K, len(overlaps) - 1),
        "overlap": float(overlaps.mean()),
        "correlation": float(correlations.mean()),
    }


def store_fidelity(request: FidelityRequest, *, store_as: StoreAs) -> Artifact | None:
    """What the store loses; None where it loses nothing, or a sample would be too small."""
    return write_fidelity(request) if store_as != "float32" and request.sampled else None
