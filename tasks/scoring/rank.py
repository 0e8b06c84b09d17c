"""From an index and a query set to a ranking: the queries' gradients, what every query set shares, and the scores."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from trackstar.storage.errors import InputError
from trackstar.storage.layout import RANKING
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.index.index_file import require_autocorrelation
from trackstar.tasks.index.norms import has_norms, mean_squares
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.models.learning_rate import read_learning_rate
from trackstar.tasks.models.loadable import require_loadable
from trackstar.tasks.runtime.progress import run_logger
from trackstar.tasks.scoring.checkpoints import JointRequest, rank_jointly, weights_of
from trackstar.tasks.scoring.queries import QueryRequest, encode_queries
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.settings import DAMPING
from trackstar.tasks.scoring.shrink import ShrinkRequest, shrink_ranking
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    write_factors,
    write_spectrum,
    write_train_norms,
)

logger = logging.getLogger(__name__)


def encode(index: Index, queries: Sequence[Query], *, is_said: bool = False) -> Artifact:
    """The query set's gradients; how queries were read goes to the run's log where that needs a warning.

    Args:
        is_said: Whether the run has read the same queries before.

    Raises:
        InputError: The checkpoint is no longer the one that was indexed, or cannot be loaded wholly.
    """
    require_same_checkpoint(index)
    encoded = encode_queries(QueryRequest(index=str(index.path), engine=index.engine, queries=tuple(queries)))
    for warning in () if is_said else encoded.facts["warnings"]:
        (run_logger() or logger).warning(warning)
    return encoded


def require_same_checkpoint(index: Index) -> None:
    """Refuse to ask another model than the one whose gradients an index holds.

    Raises:
        InputError: The checkpoint is no longer the one that was indexed, or cannot be loaded wholly.
    """
    indexed, model = index.engine.checkpoint, index.engine.model
    require_loadable(indexed.path, model)
    if read_checkpoint(indexed.path, trust_remote_code=model.trust_remote_code).digest != indexed.digest:
        raise InputError(
            f"{indexed.path} has changed since {index.path} was built from it; index it again, into another directory"
        )


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
    config = config.model_copy(update={"damping": damping_of(index, config.damping)})
    if index.is_flat:
        return _flat_request(encoded, config, method=method, common=common)
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


def damping_of(index: Index, damping: float | None) -> float | None:
    """The damping of R_train, as given or by default; none where R_train is s I.

    Raises:
        InputError: One is given where there is nothing to add it to.
    """
    if not index.is_flat:
        return DAMPING if damping is None else damping
    if damping is not None:
        raise InputError(
            f"damping is {damping:g}, and {index.path} has no R_train that it could be added to; leave out "
            "--damping, or index with --autocorrelation on"
        )
    return None


def _flat_request(encoded: Artifact, config: ScoreConfig, *, method: str, common: Mapping[str, Any]) -> ScoreRequest:
    """What is to be scored where R_train is s I: there is nothing to prepare."""
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


def ranking_table(ranking: Artifact, index: Index) -> pl.DataFrame:
    return read_table(ranking.path(str(index.path)), RANKING)
