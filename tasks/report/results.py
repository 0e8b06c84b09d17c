"""The steps from an index and queries to a ranking, and what is written about a run."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import polars as pl

from trackstar.storage.errors import InputError
from trackstar.storage.layout import QUERIES, RANKING, RUN, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query, queries_digest
from trackstar.storage.results import write_json, write_proponents
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index, shard_texts
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.report.artifacts import proponents_markdown, publish_proponents, publish_spectrum
from trackstar.tasks.scoring.queries import QueryRequest, encode_queries
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.spectra import spectra_markdown
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    write_factors,
    write_spectrum,
    write_train_norms,
)

LIBRARIES = ("trackstar", "torch", "transformers", "numpy", "scipy", "zarr", "polars", "prefect", "dask")


def encode(index: Index, queries: Sequence[Query]) -> Artifact:
    """The query set's gradients.

    Raises:
        InputError: The checkpoint is no longer the one that was indexed.
    """
    require_same_checkpoint(index)
    return encode_queries(QueryRequest(index=str(index.path), engine=index.engine, queries=tuple(queries)))


def require_same_checkpoint(index: Index) -> None:
    """Refuse to ask another model than the one whose gradients an index holds.

    Raises:
        InputError: The checkpoint is no longer the one that was indexed.
    """
    indexed = index.engine.checkpoint
    if read_checkpoint(indexed.path).digest != indexed.digest:
        raise InputError(
            f"{indexed.path} has changed since {index.path} was built from it; index it again, into another directory"
        )


def rank(index: Index, encoded: Artifact, config: ScoreConfig, *, method: str, dask: str) -> Artifact:
    """The ranking of one query set by one method over the index's gradients."""
    return rank_candidates(score_request(index, encoded, config, method=method, dask=dask))


def score_request(index: Index, encoded: Artifact, config: ScoreConfig, *, method: str, dask: str) -> ScoreRequest:
    """What is to be scored, after the stages that every query set shares: factors, spectrum and norms."""
    config.check()
    common = {"index": str(index.path), "shards": index.shards, "tombstones": index.tombstones, "dask": dask}
    R = index.autocorrelation if config.whitening != "none" else None
    if config.whitening != "none" and R is None:
        raise InputError(f"{index.path} has no R_train, its blocks being too large for one; use --whitening none")
    if R is not None and "sample" not in R.facts:
        raise InputError(f"{index.path} keeps R_train as an earlier version did; run `trackstar index` again on it")
    spectrum = R and write_spectrum(SpectrumRequest(autocorrelation=R, **common))
    factors = R and write_factors(
        FactorRequest(index=str(index.path), autocorrelation=R, damping=config.damping, dask=dask)
    )
    return ScoreRequest(
        method=method,
        config=config,
        queries=encoded,
        factors=factors,
        spectrum=spectrum,
        train_norms=write_train_norms(TrainNormsRequest(factors=factors, **common)),
        **common,
    )


def write_results(
    index: Index, queries: Sequence[Query], encoded: Artifact, rankings: Sequence[Artifact], out: str
) -> dict[str, Any]:
    """Write proponents.parquet, proponents.jsonl and run.json, and show the proponents; return what run.json holds."""
    directory = location(out)
    frame = pl.concat([ranking_table(ranking, index) for ranking in rankings])
    texts = shard_texts(index.shard_paths, set(frame["candidate_id"].unique()))
    write_proponents(directory, frame, queries=queries, texts=texts, query_set=queries_digest(queries)[:16])
    record = run_record(index, queries, encoded, rankings)
    write_json(directory / RUN, record)
    publish_proponents(proponents_markdown(frame, queries, texts, record["queries"]))
    for ranking in rankings:
        if ranking.facts.get("spectra"):
            publish_spectrum(spectra_markdown(ranking.facts), method=ranking.facts["method"])
    return record


def ranking_table(ranking: Artifact, index: Index) -> pl.DataFrame:
    return read_table(ranking.path(str(index.path)), RANKING)


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
        "num_documents": index.total("num_documents"),
        "num_withdrawn": index.num_withdrawn,
        "num_quarantined": index.total("num_quarantined"),
        "block_dims": index.block_dims,
        "methods": {ranking.facts["method"]: ranking.facts for ranking in rankings},
        "queries": {
            row["query_id"]: {name: row[name] for name in ("loss", "probability", "answer")}
            for row in said.iter_rows(named=True)
        },
        "digests": {
            "queries": queries_digest(queries),
            "shards": [shard.digest for shard in index.shards],
            "autocorrelation": index.autocorrelation and index.autocorrelation.digest,
            "second_moment": index.engine.second_moment and index.engine.second_moment.digest,
            "rankings": [ranking.digest for ranking in rankings],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
