"""The first candidates of a ranking scored again with whole gradients, which no store holds.

N documents go through the model once more. R is (1-λ) s I + λ R_eval in every block: λ and the correction are the
index's, R_eval that of the queries' whole gradients, and s the mean square of the candidates' own, for there is no
R_train of whole gradients. Held are the whole gradients of as many queries as fit into ``HELD_BYTES``, and of a few
documents; of all others only inner products are kept, so that more queries cost further passes over the candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy import ndarray

from trackstar.storage.errors import InputError
from trackstar.storage.layout import RANKING
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.queries import Query, asked
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.contents import Index, shard_documents
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.models.document_tokens import DocumentTokens, kept_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, open_engine
from trackstar.tasks.models.tokens import tokenize_queries
from trackstar.tasks.numerics.whole_scores import Products, inner_products, whole_influences
from trackstar.tasks.runtime.costs import seconds
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import stage
from trackstar.tasks.scoring.settings import ScoreConfig

HELD_BYTES = 1 << 31
BATCH_BYTES = 1 << 28
PLACE = ["query_id", "method", "kind"]

Sequences = tuple[list[Sequence[int]], list[int]]  # token ids, and the first token of each whose loss counts


class RerankRequest(IndexedShards):
    """A ranking whose candidates are to be ordered by whole gradients.

    Attributes:
        engine: The index's.
    """

    kind: ClassVar[str] = "reranked"
    version: ClassVar[int] = 1

    engine: EngineSpec
    queries: tuple[Query, ...]
    ranking: Artifact
    config: ScoreConfig

    @property
    def label(self) -> str:
        return f"whole gradients of the first {self.config.rerank} candidates of {len(self.queries)} queries"

    @property
    def whole_engine(self) -> EngineSpec:
        whole = {"projection": "none", "projection_rows": "gaussian"}
        return self.engine.model_copy(update={"gradient": self.engine.gradient.model_copy(update=whole)})

    def inputs(self) -> dict[str, Any]:
        return {
            "engine": self.whole_engine.inputs(),
            "queries": asked(self.queries),
            "ranking": self.ranking.digest,
            "top_k": self.config.top_k,
            "unit_norm": self.config.unit_norm,
            "whitening": self.config.whitening,
        }


def rerank(index: Index, queries: Sequence[Query], ranking: Artifact, config: ScoreConfig) -> Artifact:
    """The ranking by whole gradients, where the configuration asks for it; its facts say what moved and what it took.

    Raises:
        InputError: The index holds whole gradients.
    """
    if config.rerank is None:
        return ranking
    if index.engine.gradient.projection == "none":
        raise InputError(f"{index.path} holds whole gradients, by which its ranking is already; leave out --rerank")
    common = {"index": str(index.path), "shards": index.shards, "tombstones": index.tombstones}
    request = RerankRequest(engine=index.engine, queries=tuple(queries), ranking=ranking, config=config, **common)
    found = rerank_candidates(request)
    told = {**found.facts["rerank"], "seconds": seconds(found.path(request.index))}
    return found.model_copy(update={"facts": {**found.facts, "rerank": told}})


@stage
def rerank_candidates(request: RerankRequest, draft: Draft) -> None:
    """Write the best and the worst by whole gradients among the candidates of a ranking."""
    ranking = read_table(request.ranking.path(request.index), RANKING)
    table = shard_documents(request.shard_paths, ranking["candidate_id"].unique(maintain_order=True).to_list())
    ids = table["id"].to_list()
    with (
        open_engine(request.whole_engine) as engine,
        progress(request.label, total=len(ids), unit="documents") as advance,
    ):
        blocks = whole_products(engine, request.queries, kept_tokens(engine.tokenizer, table), advance)
        dims = list(engine.block_dims.values())
    weights: dict[str, float] = request.ranking.facts["mixing_weights"]
    is_whitened = request.config.whitening != "none"
    squares = [float(block.norms.mean()) / d if is_whitened else 1.0 for block, d in zip(blocks, dims, strict=True)]
    scores = whole_influences(
        blocks, squares, mixing_weights=list(weights.values()), unit_norm=request.config.unit_norm
    )
    table = _scored(ranking, scores, list(weights), [query.id for query in request.queries], ids)
    reranked = _reranked(table)
    write_table(draft.path / RANKING, reranked.filter(pl.col("rank") <= request.config.top_k).select(ranking.columns))
    draft.facts |= {
        **request.ranking.facts,
        "rerank": {
            "num_candidates": request.config.rerank,
            "num_documents": len(ids),
            "R": "(1-λ) s I + λ R_eval, s of the candidates" if is_whitened else "none",
            **_moved(reranked, method=next(iter(weights)), top_k=request.config.top_k),
        },
    }


def whole_products(
    engine: Engine, queries: Sequence[Query], documents: Sequence[DocumentTokens], advance: Any = lambda count: None
) -> list[Products]:
    """Inner products of the whole gradients of queries and documents, block by block."""
    tokens = tokenize_queries(engine.tokenizer, queries)
    of_queries = ([item.ids for item in tokens], [item.completion_start for item in tokens])
    of_documents = ([row.ids for row in documents], [row.targets for row in documents])
    num_queries, num_documents = len(queries), len(documents)
    found = {
        block: Products(np.empty((num_queries,) * 2), np.empty((num_documents, num_queries)), np.empty(num_documents))
        for block in engine.block_dims
    }
    for group in _slices(num_queries, HELD_BYTES, engine):
        held = _held(engine, of_queries, group)
        for rows, vectors in _streamed(engine, of_queries, start=group.start):
            for block, products in found.items():
                products.queries[rows, group] = inner_products(vectors[block], held[block])
                products.queries[group, rows] = products.queries[rows, group].T
        for rows, vectors in _streamed(engine, of_documents):
            for block, products in found.items():
                products.candidates[rows, group] = inner_products(vectors[block], held[block])
                products.norms[rows] = np.einsum("nd,nd->n", vectors[block], vectors[block], dtype=np.float64)
            advance(len(range(*rows.indices(num_documents))) if group.start == 0 else 0)
    return list(found.values())


def _held(engine: Engine, sequences: Sequences, group: slice) -> dict[str, ndarray]:
    """The whole gradients of some queries, a few at a time on the device."""
    count = len(range(*group.indices(len(sequences[0]))))
    held = {block: np.empty((count, dims), np.float32) for block, dims in engine.block_dims.items()}
    for rows, vectors in _streamed(engine, tuple(part[group] for part in sequences)):
        for block, values in vectors.items():
            held[block][rows] = values
    return held


def _streamed(engine: Engine, sequences: Sequences, *, start: int = 0) -> Iterator[tuple[slice, Mapping[str, ndarray]]]:
    """The whole gradients of sequences, a few at a time, and which they are."""
    ids, first_targets = sequences
    for rows in _slices(len(ids), BATCH_BYTES, engine, start=start):
        yield rows, engine.gradients(ids[rows], first_targets=first_targets[rows])[1]


def _slices(count: int, num_bytes: int, engine: Engine, *, start: int = 0) -> Iterator[slice]:
    """Runs of as many whole gradients as fit into so many bytes, one at least."""
    size = max(1, num_bytes // (4 * sum(engine.block_dims.values())))
    for first in range(start, count, size):
        yield slice(first, min(first + size, count))


def _scored(
    ranking: pl.DataFrame, scores: ndarray, methods: Sequence[str], query_ids: Sequence[str], ids: Sequence[str]
) -> pl.DataFrame:
    """The ranking with its new scores [methods n q] beside the ranks that it had."""
    places = [{name: place for place, name in enumerate(names)} for names in (methods, ids, query_ids)]
    columns = [ranking[name] for name in ("method", "candidate_id", "query_id")]
    rows = [
        column.replace_strict(place, return_dtype=pl.Int64).to_numpy()
        for column, place in zip(columns, places, strict=True)
    ]
    return ranking.with_columns(old_rank=pl.col("rank"), score=pl.Series(scores[tuple(rows)]))


def _reranked(table: pl.DataFrame) -> pl.DataFrame:
    """Ranks by score, best first; equal scores keep their order."""
    groups = []
    for group in table.partition_by(PLACE, maintain_order=True):
        ordered = group.sort("score", descending=group["kind"][0] == PROPONENT, maintain_order=True)
        groups.append(ordered.with_columns(rank=pl.int_range(1, len(group) + 1, dtype=pl.UInt32, eager=True)))
    return pl.concat(groups)


def _moved(table: pl.DataFrame, *, method: str, top_k: int) -> dict[str, float]:
    """How far proponents moved, and how many of a query's first are new among them, as means."""
    mine = table.filter((pl.col("method") == method) & (pl.col("kind") == PROPONENT))
    change = (mine["rank"].cast(pl.Int64) - mine["old_rank"].cast(pl.Int64)).abs().mean()
    is_new = mine.filter((pl.col("rank") <= top_k) & (pl.col("old_rank") > top_k))
    return {"mean_rank_change": change, "mean_new_in_top_k": len(is_new) / mine["query_id"].n_unique()}
