"""From query gradients to the highest and lowest scores over the whole corpus: one pass over the store."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from storage.errors import InputError
from storage.gradients import GradientReader
from storage.layout import DOCUMENTS, QUERIES, QUERY_VECTORS, RANKING, SPECTRUM, TRAIN_NORMS
from storage.manifest import Artifact, Draft
from storage.matrices import read_arrays
from storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA
from storage.tables import read_table, write_table
from tasks.curvature import ROWS_AT_ONCE, IndexedShards, block_factor
from tasks.dask_compute import compute, part, tree_merge
from tasks.numerics import mixing, ranking, scores
from tasks.numerics.ranking import Ranked
from tasks.stage import stage

Rankings = dict[str, Ranked]  # PROPONENT and OPPONENT

Whitening = Literal["mixed", "train", "none"]


class ScoreConfig(BaseModel):
    """How gradients become scores."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Scores")

    whitening: Whitening = Field(
        "mixed", description="mixed: R = λ R_eval + (1-λ) R_train; train: R_train alone; none: no R."
    )
    mixing_weight: float | Literal["auto"] = Field(
        "auto", description="λ, at least 0 and less than 1; auto: where the spectra of R_eval and R_train cross."
    )
    damping: float = Field(0.1, ge=0, description="Added to R_train, relative to its mean eigenvalue.")
    unit_norm: bool = Field(True, description="Whether encodings have length 1, so that scores are cosines.")
    top_k: int = Field(10, ge=0, description="Proponents and opponents of each query; 0: every candidate.")

    def check(self) -> None:
        """Raise InputError for a λ outside [0, 1), which a form or a command line may well bring."""
        if self.mixing_weight != "auto" and not 0 <= self.mixing_weight < 1:
            raise InputError(
                f"the mixing weight is {self.mixing_weight:g}; it must be at least 0 and less than 1, or auto"
            )


class ScoreRequest(IndexedShards):
    """One query set to be scored against one index."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 4

    method: str
    config: ScoreConfig
    queries: Artifact
    train_norms: Artifact
    autocorrelation: Artifact | None
    spectrum: Artifact | None

    @property
    def label(self) -> str:
        return f"{self.method} scores of {self.queries.facts['num_queries']} queries"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "method": self.method,
            "config": self.config.model_dump(),
            "queries": self.queries.digest,
        }


@stage
def rank_candidates(request: ScoreRequest, draft: Draft) -> None:
    """Write each query's proponents and opponents, and how λ came about."""
    query_vectors = read_arrays(request.queries.path(request.index), QUERY_VECTORS)
    weight = _mixing_weight(request, query_vectors)
    autocorrelation = request.autocorrelation and request.autocorrelation.path(request.index)
    bases = {  # computed on the workers and kept there: each shard needs all of them
        block: part(_basis, autocorrelation, block, request.config.damping, query_vectors[block])
        for block in request.block_dims
    }
    norms = read_arrays(request.train_norms.path(request.index), TRAIN_NORMS)
    parts, start = [], 0
    for path, shard in zip(request.shard_paths, request.shards, strict=True):
        stop = start + shard.facts["num_documents"]
        if stop == start:  # every row of it was quarantined
            continue
        shard_norms = {block: values[start:stop] for block, values in norms.items()}
        parts.append(part(_rank_shard, path, shard_norms, bases, weight.value, request.config, start))
        start = stop
    (ranked,) = compute([tree_merge(parts, partial(_merge, config=request.config))], where=request.dask)
    write_table(draft.path / RANKING, _result_table(ranked, request))
    draft.facts |= {
        "method": request.method,
        "mixing_weight": weight.value,
        "crossing_index": weight.crossing_index,
        "wanted_index": weight.wanted_index,
        "limited_by": weight.limited_by,
        "damping": request.config.damping,
        "whitening": request.config.whitening,
        "num_candidates": start,
        "spectrum": request.spectrum and request.spectrum.name,
        "train_norms": request.train_norms.name,
    }


def _mixing_weight(request: ScoreRequest, query_vectors: Mapping[str, ndarray]) -> mixing.MixingWeight:
    """λ as given, as it follows from the spectra, or 0 where R_eval takes no part."""
    config = request.config
    if config.whitening != "mixed":
        return mixing.MixingWeight(0.0, 0, 0, None)
    if config.mixing_weight != "auto":
        return mixing.MixingWeight(float(config.mixing_weight), 0, 0, None)
    train = read_arrays(request.spectrum.path(request.index), SPECTRUM)
    evaluation = [
        np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2 / len(rows) for rows in query_vectors.values()
    ]
    try:
        return mixing.crossing_mixing_weight(
            np.concatenate(list(train.values())),
            np.concatenate(evaluation),
            num_dims=sum(request.block_dims.values()),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _basis(autocorrelation: UPath | None, block: str, damping: float, query_vectors: ndarray) -> scores.QueryBasis:
    return scores.query_basis(block_factor(autocorrelation, block, damping), query_vectors)


def _rank_shard(
    path: UPath,
    norms: Mapping[str, ndarray],
    bases: Mapping[str, scores.QueryBasis],
    mixing_weight: float,
    config: ScoreConfig,
    first_position: int,
) -> Rankings:
    """The shard's own best and worst candidates of every query; of all others nothing is kept."""
    reader = GradientReader(path)
    parts: list[Rankings] = []
    for start in range(0, reader.num_rows, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, reader.num_rows)
        influence = scores.influence(
            [reader.rows(block, start, stop).astype(np.float64) @ basis.readout for block, basis in bases.items()],
            np.stack([norms[block][start:stop] for block in bases], axis=1),
            list(bases.values()),
            mixing_weight=mixing_weight,
            unit_norm=config.unit_norm,
        ).T
        positions = first_position + np.arange(start, stop)
        parts.append(
            {
                kind: ranking.best(influence, positions, top_k=config.top_k or None, largest=kind == PROPONENT)
                for kind in (PROPONENT, OPPONENT)
            }
        )
    return _merge(parts, config)


def _merge(parts: Sequence[Rankings], config: ScoreConfig) -> Rankings:
    return {
        kind: ranking.merge([ranked[kind] for ranked in parts], top_k=config.top_k or None, largest=kind == PROPONENT)
        for kind in (PROPONENT, OPPONENT)
    }


def _result_table(ranked: Rankings, request: ScoreRequest) -> pl.DataFrame:
    """Positions in the corpus as candidate ids, one row a query, kind and rank."""
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"]
    ids = pl.concat([read_table(path, DOCUMENTS)["id"] for path in request.shard_paths])
    tables = []
    for query, query_id in enumerate(query_ids):
        for kind, best in ranked.items():
            tables.append(
                pl.DataFrame(
                    {
                        "query_id": query_id,
                        "method": request.method,
                        "kind": kind,
                        "rank": np.arange(1, best.scores.shape[1] + 1),
                        "candidate_id": ids.gather(best.positions[query]),
                        "score": best.scores[query],
                    },
                    schema_overrides=dict(RESULT_SCHEMA),
                )
            )
    return pl.concat(tables)
