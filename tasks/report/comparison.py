"""What a comparison leaves behind: metrics.json, report.html, and the artifacts seen in the Prefect UI."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from trackstar.storage.layout import METRICS, QUARANTINE, QUERIES, QUERY_VECTORS, REPORT, SPECTRUM, TAIL_PATCH, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_arrays
from trackstar.storage.partial_files import write_atomically
from trackstar.storage.queries import Query
from trackstar.storage.results import read_proponents, write_json, write_text
from trackstar.storage.tables import read_table
from trackstar.tasks.evaluation.costs import index_seconds, method_costs
from trackstar.tasks.evaluation.evidence import evidence_sources
from trackstar.tasks.evaluation.metrics import Metrics, Pool, evaluate
from trackstar.tasks.index.contents import Index, block_summary, shard_texts
from trackstar.tasks.index.index_file import projection_summary, store_facts
from trackstar.tasks.methods.settings import TRACKSTAR
from trackstar.tasks.numerics.mixing import eval_spectrum
from trackstar.tasks.report.explanation import Explained, read_explanation
from trackstar.tasks.report.render import Curvature, Prediction, ReportData, render_report
from trackstar.tasks.report.views import shown_candidates


class Measured(NamedTuple):
    """What a comparison is written from, beside the result table."""

    encoded: Artifact
    rankings: Sequence[Artifact]
    pool: Pool | None
    tail_patch: Artifact | None
    explained: Explained | None


def write_comparison(index: Index, queries: Sequence[Query], measured: Measured, *, out: str, run: dict) -> Metrics:
    """Evaluate the result table that lies in ``out``; write metrics.json, tail_patch.parquet and report.html."""
    encoded, rankings, pool, tail_patch, explained = measured
    directory = location(out)
    frame = read_proponents(directory)
    changes = tail_patch and read_table(tail_patch.path(str(index.path)), TAIL_PATCH)
    if changes is not None:
        with write_atomically(directory / TAIL_PATCH) as file:
            changes.write_parquet(file)
    metrics = evaluate(frame, queries, tail_patch=changes, evidence=evidence_sources(queries))
    metrics = metrics.model_copy(update={"pool": pool})
    write_json(directory / METRICS, metrics.model_dump())
    data = ReportData(
        model=index.engine.checkpoint.name,
        corpus=", ".join(location(path).name for path in index.corpus.paths),
        queries=queries,
        proponents=frame,
        texts=shard_texts(index.shard_paths, shown_candidates(frame, queries)),
        predictions=_predictions(index, encoded),
        metrics=metrics,
        tail_patch=changes,
        facts=_facts(index, run, tail_patch),
        costs=method_costs(index.path, rankings, built=index_seconds(index)),
        curvature=_curvature(index, encoded, run),
        explanation=read_explanation(index, explained),
        num_quarantined=index.total("num_quarantined"),
    )
    write_text(directory / REPORT, render_report(data))
    return metrics


def quarantined(index: Index) -> pl.DataFrame:
    """Every rejected row of the corpus: row, id, reason."""
    return pl.concat([read_table(path, QUARANTINE) for path in index.shard_paths])


def _predictions(index: Index, encoded: Artifact) -> dict[str, Prediction]:
    said = read_table(encoded.path(str(index.path)), QUERIES)
    rows = said.select("query_id", "probability", "answer", "warnings").iter_rows()
    return {
        query_id: Prediction(probability=probability, answer=answer, warnings=tuple(warnings))
        for query_id, probability, answer, warnings in rows
    }


def _facts(index: Index, run: Mapping[str, Any], tail_patch: Artifact | None) -> dict[str, str | int | float | bool]:
    gradient = index.engine.gradient
    facts = {
        "Documents": index.total("num_documents"),
        "Tokens": index.total("num_tokens"),
        "Second moment": run["second_moment"] or "none",
        "Projection": projection_summary(index.engine).replace("k =", "two-sided, k ="),
        "Blocks": block_summary(list(index.block_dims.values())),
        **{name.capitalize(): value for name, value in store_facts(index).items()},
        "Seed": gradient.seed,
    }
    if tail_patch is not None:
        facts["Tail-patch step"] = f"{tail_patch.facts['optimizer']}, η = {tail_patch.facts['learning_rate']:g}"
    return facts


def _curvature(index: Index, encoded: Artifact, run: Mapping[str, Any]) -> Curvature | None:
    facts = run["methods"].get(TRACKSTAR)
    if facts is None or not facts["mixing_weight"]:
        return None
    weight = facts["mixing_weight"]
    query_vectors = read_arrays(encoded.path(str(index.path)), QUERY_VECTORS, order=index.block_dims)
    spectra = {"λ R_eval": weight * eval_spectrum(query_vectors.values())}
    if facts["spectrum"] is not None:
        train = read_arrays(index.path / facts["spectrum"], SPECTRUM, order=index.block_dims)
        spectra["(1-λ) R_train"] = (1 - weight) * np.concatenate(list(train.values()))
    return Curvature(
        mixing_weight=weight,
        damping=facts["damping"],
        crossing=facts["crossing_index"] or None,
        facts=_spectrum_facts(facts),
        spectra={name: values[values > 0].tolist() for name, values in spectra.items()},
    )


def _spectrum_facts(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What R_train and R_eval can tell apart, and how much of it damping decides."""
    shown: dict[str, str | int | float] = {}
    if facts["limited_by"] is not None:
        shown["Crossing limited by"] = f"{facts['limited_by']}, instead of component {facts['wanted_index']:,}"
    for name, report in facts["spectra"].items():
        dims = f" of {report['num_dims']:,}" if "num_dims" in report else ""
        shown[f"Rank of {name}"] = f"{report['rank']:,}{dims}"
        shown[f"Effective rank of {name}"] = report["effective_rank"]
        if "damping_share" in report:
            condition = report["condition"]
            shown["Condition number, damped"] = "infinite" if condition is None else f"{condition:.3g}"
            shown["Effective dimension at this damping"] = round(report["effective_dimension"])
            shown["Share that damping decides"] = f"{report['damping_share']:.1%}"
    return shown
