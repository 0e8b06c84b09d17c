"""The steps from an index and queries to a ranking, and what is written about a run."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import polars as pl
from prefect import get_run_logger

from trackstar.storage.errors import InputError
from trackstar.storage.layout import QUERIES, RANKING, SHARES, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query, queries_digest
from trackstar.storage.results import write_proponents, write_run, write_shares
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index, shard_texts
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.index.index_file import factor_facts, require_autocorrelation
from trackstar.tasks.index.norms import has_norms, mean_squares
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.models.learning_rate import read_learning_rate
from trackstar.tasks.models.loadable import require_loadable
from trackstar.tasks.report.artifacts import proponents_markdown, publish_proponents, publish_spectrum
from trackstar.tasks.scoring.checkpoints import JointRequest, rank_jointly, weights_of
from trackstar.tasks.scoring.queries import QueryRequest, encode_queries
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.settings import DAMPING
from trackstar.tasks.scoring.shrink import ShrinkRequest, shrink_ranking
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


def encode(index: Index, queries: Sequence[Query], *, is_said: bool = False) -> Artifact:
    """The query set's gradients; how queries were read goes to the run's log where that needs a warning.

    Args:
        is_said: Whether the run has read the same queries before.

    Raises:
        InputError: The checkpoint is no longer the one that was indexed, or cannot be loaded wholly.
    """
    indexed, model = index.engine.checkpoint, index.engine.model
    require_loadable(indexed.path, model)
    if read_checkpoint(indexed.path, trust_remote_code=model.trust_remote_code).digest != indexed.digest:
        raise InputError(
            f"{indexed.path} has changed since {index.path} was built from it; index it again, into another directory"
        )
    encoded = encode_queries(QueryRequest(index=str(index.path), engine=index.engine, queries=tuple(queries)))
    for warning in () if is_said else encoded.facts["warnings"]:
        get_run_logger().warning(warning)
    return encoded


def rank(index: Index, encoded: Artifact, config: ScoreConfig, *, method: str, dask: str) -> Artifact:
    """The ranking of one query set by one method over the index's gradients."""
    request = score_request(index, encoded, config, method=method, dask=dask)
    ranking = rank_candidates(request)
    if config.shrink is None:
        return ranking
    return shrink_ranking(ShrinkRequest(index=request.index, scored=request, ranking=ranking))


def rank_together(
    indexes: Sequence[Index], encoded: Sequence[Artifact], config: ScoreConfig, *, method: str, dask: str
) -> Artifact:
    """The ranking of one query set by the sum over several indexes, kept in the first of them.

    Raises:
        InputError: Two are of one checkpoint, or they do not hold the same documents.
    """
    seen: dict[str, Index] = {}
    for index in indexes:
        known = seen.setdefault(index.engine.checkpoint.digest, index)
        if known is not index:
            raise InputError(f"{index.path} and {known.path} are of the same checkpoint; give each checkpoint once")
    checkpoints = tuple(index.engine.checkpoint.path for index in indexes)
    return rank_jointly(
        JointRequest(
            index=str(indexes[0].path),
            scored=tuple(
                score_request(index, of_queries, config, method=method, dask=dask)
                for index, of_queries in zip(indexes, encoded, strict=True)
            ),
            checkpoints=checkpoints,
            weights=weights_of([read_learning_rate(checkpoint) for checkpoint in checkpoints]),
        )
    )


def score_request(index: Index, encoded: Artifact, config: ScoreConfig, *, method: str, dask: str) -> ScoreRequest:
    """What is to be scored, after the stages that every query set shares: factors, spectrum and norms."""
    config.check()
    common = {"index": str(index.path), "shards": index.shards, "tombstones": index.tombstones, "dask": dask}
    if index.is_flat:
        return _flat_request(index, encoded, config, method=method, common=common)
    config = config.model_copy(update={"damping": DAMPING if config.damping is None else config.damping})
    R = index.autocorrelation if config.whitening != "none" else None
    require_autocorrelation(index, config.whitening)
    spectrum = R and write_spectrum(SpectrumRequest(autocorrelation=R, **common))
    factors = R and write_factors(
        FactorRequest(index=str(index.path), autocorrelation=R, damping=config.damping, dask=dask)
    )
    norms = TrainNormsRequest(factors=factors, **common)
    return ScoreRequest(
        method=method,
        config=config,
        queries=encoded,
        factors=factors,
        spectrum=spectrum,
        train_norms=None if R is None and has_norms(index.shards) else write_train_norms(norms),
        **common,
    )


def _flat_request(
    index: Index, encoded: Artifact, config: ScoreConfig, *, method: str, common: Mapping[str, Any]
) -> ScoreRequest:
    """What is to be scored where R_train is s I: there is nothing to prepare."""
    if config.damping is not None:
        raise InputError(
            f"damping is {config.damping:g}, and {index.path} has no R_train that it could be added to; leave out "
            "--damping, or index with --autocorrelation on"
        )
    squares = mean_squares(IndexedShards(**common)) if config.whitening != "none" else None
    return ScoreRequest(
        method=method,
        config=config,
        queries=encoded,
        factors=None,
        spectrum=None,
        train_norms=None,
        mean_squares=squares,
        **common,
    )


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
