"""TracIn over the checkpoints that are given: one pass over each one's store of plain gradients."""

from collections.abc import Iterator
from typing import Any, ClassVar

from numpy import ndarray

from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import QUERIES, QUERY_VECTORS
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays
from trackstar.storage.tables import read_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.numerics.tracin import gradient_products
from trackstar.tasks.runtime.stage import StageRequest, stage
from trackstar.tasks.scoring.rankings import rank_parts, write_ranking


class TracInRequest(StageRequest):
    """A query set to be ranked by gradient products, summed over checkpoints.

    Attributes:
        shards: Per checkpoint, its store; the same documents in the same order.
        queries: Per checkpoint, the query set's gradients.
    """

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 3

    method: str
    shards: tuple[tuple[Artifact, ...], ...]
    queries: tuple[Artifact, ...]
    unit_norm: bool
    top_k: int
    tombstones: Artifact | None = None

    @property
    def label(self) -> str:
        return (
            f"{self.method} scores of {self.queries[0].facts['num_queries']} queries, {len(self.queries)} checkpoints"
        )

    def inputs(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "shards": [[shard.digest for shard in shards] for shards in self.shards],
            "queries": [queries.digest for queries in self.queries],
            "unit_norm": self.unit_norm,
            "top_k": self.top_k,
            "tombstones": self.tombstones and self.tombstones.digest,
        }


@stage
def rank_by_tracin(request: TracInRequest, draft: Draft) -> None:
    """Write each query's proponents and opponents by the sum over checkpoints."""
    query_ids = read_table(request.queries[0].path(request.index), QUERIES)["query_id"].to_list()
    candidates = Candidates(request.shards[0], request.index, request.tombstones)
    ranked = rank_parts(_scores(request), candidates, top_k=request.top_k)
    write_ranking(draft, ranked, method=request.method, query_ids=query_ids, candidates=candidates)
    draft.facts |= {"num_checkpoints": len(request.queries), "unit_norm": request.unit_norm}


def _scores(request: TracInRequest) -> Iterator[ndarray]:
    """[q n] of some documents at a time, in corpus order."""
    queries = [
        read_arrays(artifact.path(request.index), QUERY_VECTORS, order=shards[0].facts["block_dims"])
        for artifact, shards in zip(request.queries, request.shards, strict=True)
    ]
    for shards in zip(*request.shards, strict=True):
        readers = [GradientReader(shard.path(request.index)) for shard in shards]
        for start, stop in readers[0].windows():
            yield sum(
                _products(reader, vectors, start, stop, request.unit_norm)
                for reader, vectors in zip(readers, queries, strict=True)
            )


def _products(reader: GradientReader, queries: dict[str, ndarray], start: int, stop: int, unit_norm: bool) -> ndarray:
    blocks = [reader.rows(block, start, stop) for block in queries]
    return gradient_products(blocks, list(queries.values()), unit_norm=unit_norm).T
