"""Tail-patch of the top proponents of every method: the measure of influence that favours no method."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from trackstar.storage.errors import InputError
from trackstar.storage.layout import RANKING, TAIL_PATCH
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.queries import Query, asked
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.evaluation.settings import TailPatchConfig
from trackstar.tasks.index.contents import shard_documents
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.models.document_tokens import kept_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, dense_scales, open_engine
from trackstar.tasks.models.tokens import tokenize_queries
from trackstar.tasks.numerics.batching import Window, pad
from trackstar.tasks.numerics.tail_patch import probability_changes
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import stage


class TailPatchRequest(IndexedShards):
    """The proponents of some rankings to be trained on, one by one."""

    kind: ClassVar[str] = "tail_patch"
    version: ClassVar[int] = 4

    engine: EngineSpec
    queries: tuple[Query, ...]
    rankings: tuple[Artifact, ...]
    config: TailPatchConfig

    @property
    def label(self) -> str:
        return f"tail-patch of {self.config.num_proponents} proponents by {len(self.rankings)} methods"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "engine": self.engine.inputs(),
            **self._own_second_moment(),
            "queries": asked(self.queries),
            "rankings": [ranking.digest for ranking in self.rankings],
            "config": self.config.model_dump(),
        }

    def _own_second_moment(self) -> dict[str, str]:
        """V, where steps are divided by its root and gradients are not."""
        V = self.engine.second_moment
        return {} if V is None or V in self.engine.corrected_by else {"second_moment": V.digest}


@stage
def measure_tail_patch(request: TailPatchRequest, draft: Draft) -> None:
    """Write query_id, method, candidate_id, probability_change of every top proponent."""
    wanted = pl.concat([read_table(ranking.path(request.index), RANKING) for ranking in request.rankings]).filter(
        (pl.col("kind") == PROPONENT) & (pl.col("rank") <= request.config.num_proponents)
    )
    pairs = wanted.select("candidate_id", "query_id").unique(maintain_order=True)
    queries_of = dict(pairs.group_by("candidate_id", maintain_order=True).agg("query_id").iter_rows())
    with (
        open_engine(request.engine) as engine,
        progress(request.label, total=len(queries_of), unit="documents") as advance,
    ):
        changes = _changes(request, engine, queries_of, advance)
    write_table(draft.path / TAIL_PATCH, wanted.select("query_id", "method", "candidate_id").join(
        changes, on=["query_id", "candidate_id"], how="left", maintain_order="left"
    ))  # fmt: skip
    draft.facts |= {**request.config.model_dump(), "optimizer": "adafactor", "num_documents": len(queries_of)}


def _changes(
    request: TailPatchRequest, engine: Engine, queries_of: Mapping[str, Sequence[str]], advance: Any
) -> pl.DataFrame:
    documents = kept_tokens(engine.tokenizer, shard_documents(request.shard_paths, list(queries_of)))
    if any(isinstance(row.targets, np.ndarray) for row in documents):
        raise InputError(
            "tail-patch steps on whole texts, and documents here count in part; leave it out: --tail-patch 0"
        )
    row_of = {query.id: row for row, query in enumerate(request.queries)}
    measured = probability_changes(
        engine.model,
        [torch.tensor(row.ids[: engine.context], device=engine.device) for row in documents],
        _query_batch(engine, request.queries),
        asked=[[row_of[query_id] for query_id in ids] for ids in queries_of.values()],
        scales=dense_scales(engine.model, request.engine, device=engine.device),
        learning_rate=request.config.learning_rate,
    )
    rows = []
    for (candidate_id, query_ids), values in zip(queries_of.items(), measured, strict=True):
        rows += [(query_id, candidate_id, value) for query_id, value in zip(query_ids, values.tolist(), strict=True)]
        advance(1)
    schema = {"query_id": pl.String, "candidate_id": pl.String, "probability_change": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _query_batch(engine: Engine, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    tokens = tokenize_queries(engine.tokenizer, queries)
    rows = [Window(row, 0, len(item.ids)) for row, item in enumerate(tokens)]
    padded = pad(rows, [item.ids for item in tokens], [item.completion_start for item in tokens])
    ids, chosen = (torch.from_numpy(array).to(engine.device) for array in padded)
    return ids, chosen
