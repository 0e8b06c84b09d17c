"""Reciprocal-rank fusion: what influence and word overlap agree on comes first.

    score(d) = Σ_lists 1 / (60 + rank of d)        Cormack, Clarke and Büttcher 2009, where 60 was found and kept

A document that a list does not reach gets nothing from it. Only ranks count, so the methods' scales do not matter.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl

from trackstar.storage.layout import RANKING
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.results import PROPONENT, RESULT_SCHEMA
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.runtime.stage import StageRequest, stage

RANK_OFFSET = 60
FUSED_DEPTH = 1000  # of each list, as in the paper's runs


class HybridRequest(StageRequest):
    """Rankings of one query set to be fused."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 1

    rankings: tuple[Artifact, ...]
    top_k: int

    @property
    def label(self) -> str:
        return f"fusion of {' and '.join(ranking.facts['method'] for ranking in self.rankings)}"

    def inputs(self) -> dict[str, Any]:
        return {"method": "hybrid", "rankings": [ranking.digest for ranking in self.rankings], "top_k": self.top_k}


@stage
def fuse_rankings(request: HybridRequest, draft: Draft) -> None:
    """Write each query's proponents by fused rank."""
    lists = [read_table(ranking.path(request.index), RANKING) for ranking in request.rankings]
    write_table(draft.path / RANKING, reciprocal_rank_fusion(lists, method="hybrid", top_k=request.top_k))
    draft.facts |= {
        "method": "hybrid",
        "fused": [ranking.facts["method"] for ranking in request.rankings],
        "rank_offset": RANK_OFFSET,
        "num_candidates": request.rankings[0].facts["num_candidates"],
    }


def reciprocal_rank_fusion(lists: Sequence[pl.DataFrame], *, method: str, top_k: int) -> pl.DataFrame:
    """The result table of the fused proponents; equal scores stand in the order of the lists, first list first.

    Args:
        lists: Result tables, one a method, over the same queries.
        top_k: How many to keep; 0 keeps all.
    """
    ranked = pl.concat(lists).filter(pl.col("kind") == PROPONENT)
    fused = (
        ranked.group_by("query_id", "candidate_id", maintain_order=True)
        .agg(score=(1 / (RANK_OFFSET + pl.col("rank").cast(pl.Float64))).sum())
        .sort("score", descending=True, maintain_order=True)
        .with_columns(
            rank=pl.int_range(1, pl.len() + 1).over("query_id"), method=pl.lit(method), kind=pl.lit(PROPONENT)
        )
    )
    order = ranked["query_id"].unique(maintain_order=True).to_frame()
    table = order.join(fused, on="query_id", maintain_order="left_right")
    return (
        table.filter((pl.col("rank") <= top_k) | (top_k == 0)).select(RESULT_SCHEMA.names()).cast(dict(RESULT_SCHEMA))
    )
