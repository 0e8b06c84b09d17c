"""What is written about a run, beside the rankings it made."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import polars as pl

from trackstar.storage.layout import QUERIES, SHARES, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query, queries_digest
from trackstar.storage.results import write_proponents, write_run, write_shares
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index, shard_texts
from trackstar.tasks.index.index_file import factor_facts
from trackstar.tasks.report.artifacts import proponents_markdown, publish_proponents, publish_spectrum
from trackstar.tasks.scoring.rank import ranking_table
from trackstar.tasks.scoring.spectra import spectra_markdown

LIBRARIES = ("trackstar", "torch", "transformers", "numpy", "scipy", "zarr", "polars", "prefect", "dask")


def write_results(
    index: Index, queries: Sequence[Query], encoded: Artifact, rankings: Sequence[Artifact], out: str
) -> dict[str, Any]:
    """Write proponents.parquet, proponents.jsonl and run.json, and show the proponents; return what run.json holds."""
    directory = location(out)
    frame = pl.concat([ranking_table(ranking, index) for ranking in rankings])
    texts = shard_texts(index.shard_paths, set(frame["candidate_id"].unique()))
    files = write_proponents(directory, frame, queries=queries, texts=texts, query_set=queries_digest(queries)[:16])
    for ranking in rankings:
        if "checkpoints" in ranking.facts:
            files |= write_shares(directory, read_table(ranking.path(str(index.path)), SHARES))
    record = run_record(index, queries, encoded, rankings)
    write_run(directory, record, files=files)
    publish_proponents(proponents_markdown(frame, queries, texts, record["queries"]))
    for ranking in rankings:
        if ranking.facts.get("spectra"):
            publish_spectrum(spectra_markdown(ranking.facts), method=ranking.facts["method"])
    return record


def run_record(
    index: Index, queries: Sequence[Query], encoded: Artifact, rankings: Sequence[Artifact]
) -> dict[str, Any]:
    """All that is needed to repeat the run, and what came out of its automatic choices."""
    said = read_table(encoded.path(str(index.path)), QUERIES)
    return {
        "index": str(index.path),
        "checkpoint": index.engine.checkpoint.model_dump(),
        "model": index.engine.model.model_dump(),
        "gradient": index.engine.gradient.model_dump(),
        "second_moment": index.engine.second_moment and index.engine.second_moment.facts["mode"],
        "factors": dict(factor_facts(index.engine.kronecker)),
        "num_documents": index.total("num_documents"),
        "num_withdrawn": index.num_withdrawn,
        "num_quarantined": index.total("num_quarantined"),
        "block_dims": index.block_dims,
        "warnings": encoded.facts["warnings"],
        "methods": {ranking.facts["method"]: ranking.facts for ranking in rankings},
        "queries": {
            row["query_id"]: {name: row[name] for name in ("loss", "probability", "answer", "warnings")}
            for row in said.iter_rows(named=True)
        },
        "digests": {
            "queries": queries_digest(queries),
            "shards": [shard.digest for shard in index.shards],
            "autocorrelation": index.autocorrelation and index.autocorrelation.digest,
            "second_moment": index.engine.second_moment and index.engine.second_moment.digest,
            "kronecker": [artifact.digest for artifact in index.engine.kronecker],
            "rankings": [ranking.digest for ranking in rankings],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
