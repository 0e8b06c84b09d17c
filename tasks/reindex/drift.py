"""Drift: how the answers to the standing queries moved from one checkpoint to the next.

A query is compared when both checkpoints were asked exactly it; its opponents are left aside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.layout import DRIFT_PAGE
from trackstar.storage.queries import Query
from trackstar.storage.results import PROPONENT, read_proponents, read_run, write_json, write_text
from trackstar.tasks.numerics.rank_overlap import rank_biased_overlap
from trackstar.tasks.reindex.checkpoints import Asked, require_asked
from trackstar.tasks.report.artifacts import escape_markdown
from trackstar.tasks.report.templating import STYLE, asset, page_template

DRIFT = "drift.json"
TEMPLATE = Path(__file__).with_name("drift.html.j2")
ARTIFACT_QUERIES = 50


class Change(BaseModel):
    """A quantity at the previous checkpoint and at this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: float
    after: float


class QueryDrift(BaseModel):
    """What became of one query.

    Attributes:
        overlap: Rank-biased overlap of the proponents: 1 where nothing moved, 0 where none stayed.
        entered, left: Proponents of only one of the two checkpoints, best first.
        scores: Of the proponents of both, in the order they have now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: Query
    overlap: float
    entered: tuple[str, ...]
    left: tuple[str, ...]
    scores: dict[str, Change]
    loss: Change
    probability: Change
    answer_before: str
    answer_after: str


class Drift(BaseModel):
    """A drift report. ``not_compared`` are queries that only one of the checkpoints was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    previous: str
    checkpoint: str
    mixing_weight: Change | None
    queries: tuple[QueryDrift, ...]
    not_compared: tuple[str, ...]

    @property
    def mean_overlap(self) -> float | None:
        return sum(query.overlap for query in self.queries) / len(self.queries) if self.queries else None


def measure_drift(previous: UPath, current: UPath, asked_now: Asked) -> Drift:
    """Compare two result directories; what the second one answers is not yet written down in it."""
    asked = [require_asked(previous), asked_now]
    runs = [read_run(results) for results in (previous, current)]
    tables = [
        read_proponents(results).filter(pl.col("kind") == PROPONENT).sort("rank") for results in (previous, current)
    ]
    common = [query for query in asked[1].queries if query in asked[0].queries]
    every_id = {query.id for side in asked for query in side.queries}
    return Drift(
        previous=asked[0].name,
        checkpoint=asked[1].name,
        mixing_weight=_mixing_weight(runs),
        queries=tuple(_query_drift(query, tables, [run["queries"][query.id] for run in runs]) for query in common),
        not_compared=tuple(sorted(every_id - {query.id for query in common})),
    )


def write_drift(drift: Drift, results: UPath) -> None:
    """Write drift.json and drift.html."""
    write_json(results / DRIFT, drift.model_dump(mode="json"))
    write_text(results / DRIFT_PAGE, render_drift(drift))


def render_drift(drift: Drift) -> str:
    """The report as one page that needs no network; every text in it is escaped."""
    return page_template(TEMPLATE).render(drift=drift, css=asset(STYLE))


def drift_markdown(drift: Drift) -> str:
    """The report as the artifact of a flow run."""
    lines = [
        f"# {escape_markdown(drift.previous)} → {escape_markdown(drift.checkpoint)}",
        "",
        "| query | overlap | entered | left | loss | probability |",
        "|---|---|---|---|---|---|",
    ]
    for moved in drift.queries[:ARTIFACT_QUERIES]:
        lines.append(
            f"| {escape_markdown(moved.query.prompt)} **{escape_markdown(moved.query.completion)}** "
            f"| {moved.overlap:.3f} | {len(moved.entered)} | {len(moved.left)} "
            f"| {moved.loss.before:.3f} → {moved.loss.after:.3f} "
            f"| {moved.probability.before:.3f} → {moved.probability.after:.3f} |"
        )
    if len(drift.queries) > ARTIFACT_QUERIES:
        lines.append(f"\n… and {len(drift.queries) - ARTIFACT_QUERIES} more queries in {DRIFT}.")
    return "\n".join(lines)


def publish_drift(drift: Drift) -> None:
    create_markdown_artifact(drift_markdown(drift), key="drift", description="What moved since the last checkpoint.")


def _query_drift(query: Query, tables: list[pl.DataFrame], said: list[Mapping[str, Any]]) -> QueryDrift:
    rankings = [
        dict(table.filter(pl.col("query_id") == query.id).select("candidate_id", "score").iter_rows())
        for table in tables
    ]
    before, after = rankings
    return QueryDrift(
        query=query,
        overlap=rank_biased_overlap(list(before), list(after)),
        entered=tuple(id for id in after if id not in before),
        left=tuple(id for id in before if id not in after),
        scores={id: Change(before=before[id], after=score) for id, score in after.items() if id in before},
        loss=Change(before=said[0]["loss"], after=said[1]["loss"]),
        probability=Change(before=said[0]["probability"], after=said[1]["probability"]),
        answer_before=said[0]["answer"],
        answer_after=said[1]["answer"],
    )


def _mixing_weight(runs: list[Mapping[str, Any]]) -> Change | None:
    """λ of both, or None where a ranking has none."""
    before, after = (next(iter(run["methods"].values())).get("mixing_weight") for run in runs)
    return None if before is None or after is None else Change(before=before, after=after)
