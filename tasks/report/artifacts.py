"""What a person sees of a finished run in the Prefect UI. Corpus and model texts are foreign: they are escaped."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from trackstar.storage.layout import REPORT, location
from trackstar.storage.queries import Query
from trackstar.storage.results import PROPONENT
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.runtime.prefect_context import in_flow

SHOWN_QUERIES = 20
SHOWN_PROPONENTS = 5
SHOWN_CHARACTERS = 200

MARKDOWN_SYNTAX = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>:/@$])")


def escape_markdown(text: str) -> str:
    """Text that Markdown and HTML show as it is: no tag, link, image, table or heading comes out of it."""
    flat = " ".join(text.split())
    shortened = flat if len(flat) <= SHOWN_CHARACTERS else f"{flat[:SHOWN_CHARACTERS]}…"
    return MARKDOWN_SYNTAX.sub(r"\\\1", html.escape(shortened, quote=False)).replace("\\&", "&")


def proponents_markdown(
    frame: pl.DataFrame, queries: Sequence[Query], texts: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]]
) -> str:
    """The best proponents of each query and method, as Markdown."""
    lines: list[str] = []
    best = frame.filter((pl.col("kind") == PROPONENT) & (pl.col("rank") <= SHOWN_PROPONENTS))
    for query in queries[:SHOWN_QUERIES]:
        said = answers[query.id]
        lines += [
            f"## {escape_markdown(query.prompt)} → **{escape_markdown(query.completion)}**",
            f"The model says *{escape_markdown(said['answer']) or '(nothing)'}*; "
            f"probability of the completion {said['probability']:.3f}.",
            "",
        ]
        for (method,), rows in best.filter(pl.col("query_id") == query.id).group_by("method", maintain_order=True):
            lines += [f"### {escape_markdown(method)}", "", *_ranked(rows.sort("rank"), texts), ""]
    if len(queries) > SHOWN_QUERIES:
        lines.append(f"… and {len(queries) - SHOWN_QUERIES} more queries in proponents.parquet.")
    return "\n".join(lines)


def _ranked(rows: pl.DataFrame, texts: Mapping[str, str]) -> list[str]:
    """A list and not a table: the UI wraps the one and cuts the other off."""
    return [
        f"{row['rank']}. **{row['score']:.3f}** {escape_markdown(texts[row['candidate_id']])} "
        f"*({escape_markdown(row['candidate_id'])})*"
        for row in rows.iter_rows(named=True)
    ]


def metrics_rows(metrics: Metrics) -> list[dict[str, str]]:
    """One row a method, each metric with its interval."""
    return [
        {"method": method, **{name: f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for name, e in values.items()}}
        for method, values in metrics.methods.items()
    ]


def publish_proponents(markdown: str) -> None:
    if not in_flow():
        return
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown, key="proponents", description="The best proponents of each query.")


def publish_spectrum(markdown: str, *, method: str) -> None:
    if not in_flow():
        return
    from prefect.artifacts import create_markdown_artifact

    key = f"spectrum-{re.sub('[^a-z0-9]+', '-', method.lower())}"
    create_markdown_artifact(markdown, key=key, description=f"R_train, R_eval and λ of {method}.")


def publish_metrics(metrics: Metrics, out: str) -> None:
    if not in_flow():
        return
    from prefect.artifacts import create_link_artifact, create_table_artifact

    create_table_artifact(metrics_rows(metrics), key="metrics", description="Metrics with 95 % bootstrap intervals.")
    create_link_artifact((location(out) / REPORT).absolute().as_uri(), key="report", link_text=REPORT)
