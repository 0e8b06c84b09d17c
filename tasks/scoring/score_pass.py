"""From query gradients to the highest and lowest scores over the whole corpus: one pass over the store."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import QUERIES, QUERY_VECTORS, RANKING, SPECTRUM
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.numerics import mixing, ranking, scores
from trackstar.tasks.numerics.ranking import Ranked
from trackstar.tasks.runtime.dask import compute, part, tree_merge
from trackstar.tasks.runtime.stage import stage
from trackstar.tasks.scoring.rankings import result_table
from trackstar.tasks.scoring.settings import ScoreConfig
from trackstar.tasks.scoring.spectra import eval_facts, train_facts
from trackstar.tasks.scoring.whitening import TrainWhitening

Rankings = dict[tuple[int, str], Ranked]  # by number of the mixing weight, and PROPONENT or OPPONENT


class ScoreRequest(IndexedShards):
    """One query set to be scored against one index.

    Attributes:
        train_norms: ‖ψ‖² of every document, where its shard's ‖φ‖² are not enough.
        factors: Of R_train.
        mean_squares: s of every block, where R_train is s I.
    """

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 5

    method: str
    config: ScoreConfig
    queries: Artifact
    train_norms: Artifact | None
    factors: Artifact | None
    spectrum: Artifact | None
    mean_squares: dict[str, float] | None = None

    @property
    def label(self) -> str:
        return f"{self.method} scores of {self.queries.facts['num_queries']} queries"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "method": self.method,
            "config": self.config.of_pass(),
            "queries": self.queries.digest,
            "factors": self.factors and self.factors.digest,
            **({"mean_squares": self.mean_squares} if self.mean_squares else {}),
        }

    @property
    def train_whitening(self) -> TrainWhitening:
        factors, norms = (artifact and artifact.path(self.index) for artifact in (self.factors, self.train_norms))
        return TrainWhitening(factors, self.mean_squares, norms)


class RowReader(Protocol):
    """Gives the rows of a shard's blocks, a few at a time with the number of the first, as ``GradientReader`` does."""

    @property
    def num_rows(self) -> int: ...
    def row_parts(self, block: str, start: int, stop: int) -> Iterator[tuple[int, ndarray]]: ...
    def windows(self) -> Iterable[tuple[int, int]]: ...


class Pass(NamedTuple):
    """What one pass over the store needs to know, the same for every shard.

    Attributes:
        train_whitening: Where ‖ψ‖² and ‖φ‖² come from, unless they are given.
        mixing_weights: Each λ that is scored.
        config: How gradients become scores.
    """

    train_whitening: TrainWhitening
    mixing_weights: tuple[float, ...]
    config: ScoreConfig


@stage
def rank_candidates(request: ScoreRequest, draft: Draft) -> None:
    """Write each query's proponents and opponents, and how λ came about."""
    weights, facts = chosen_weights(request)
    candidates = Candidates(request.shards, request.index, request.tombstones)
    ranked = _rank(request, candidates, read_query_vectors(request), weights)
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"]
    write_table(draft.path / RANKING, result_table(ranked, query_ids=query_ids, candidates=candidates))
    draft.facts |= {**facts, "num_candidates": candidates.num_live}


def chosen_weights(request: ScoreRequest) -> tuple[dict[str, float], dict[str, Any]]:
    """λ by the name of the method it makes, that of the configuration first, and how it came about."""
    spectra = _spectra(request, read_query_vectors(request))
    weight = _mixing_weight(request, spectra)
    weights = _method_weights(request, weight)
    return weights, {
        "method": request.method,
        "mixing_weight": weight.value,
        "mixing_weights": weights,
        "crossing_index": weight.crossing_index,
        "wanted_index": weight.wanted_index,
        "limited_by": weight.limited_by,
        "crossing_values": {"R_train": weight.train_value, "R_eval": weight.eval_value},
        "damping": request.config.damping,
        "whitening": request.config.whitening,
        "spectrum": request.spectrum and request.spectrum.name,
        "queries": request.queries.name,
        "factors": request.factors and request.factors.name,
        "train_norms": request.train_norms and request.train_norms.name,
        **({"mean_squares": request.mean_squares} if request.mean_squares else {}),
        "spectra": _spectra_facts(spectra, request),
    }


def mixing_weights(request: ScoreRequest) -> dict[str, float]:
    """λ by the name of the method it makes, that of the configuration, as given or as the spectra have it, first."""
    return chosen_weights(request)[0]


def read_query_vectors(request: ScoreRequest) -> dict[str, ndarray]:
    """The queries' gradients [q d], block by block in the index's order."""
    return read_arrays(request.queries.path(request.index), QUERY_VECTORS, order=request.block_dims)


def _method_weights(request: ScoreRequest, chosen: mixing.MixingWeight) -> dict[str, float]:
    further = {f"{request.method}@{weight:g}": weight for weight in request.config.mixing_weights}
    return {request.method: chosen.value, **further}


def _rank(
    request: ScoreRequest, candidates: Candidates, query_vectors: Mapping[str, ndarray], weights: Mapping[str, float]
) -> dict[tuple[str, str], Ranked]:
    """One pass over all shards: the rankings by method, and PROPONENT or OPPONENT."""
    bases = query_bases(request, request.train_whitening, query_vectors)
    common = pass_of(request, weights)
    parts = [
        part(_rank_shard, path, common, bases, start, candidates.withdrawn.get(path))
        for path, start in candidates.shards()
    ]
    (ranked,) = compute(
        [tree_merge(parts, partial(merge_rankings, top_k=request.config.top_k or None))], where=request.dask
    )
    methods = list(weights)
    return {(methods[number], kind): best for (number, kind), best in ranked.items()}


def pass_of(request: ScoreRequest, weights: Mapping[str, float]) -> Pass:
    """What every shard of this request's pass is told."""
    return Pass(request.train_whitening, tuple(weights.values()), request.config)


def _spectra(request: ScoreRequest, query_vectors: Mapping[str, ndarray]) -> dict[str, dict[str, ndarray]]:
    """Eigenvalues of R_train and of R_eval as far as the scores rest on them, block by block."""
    found = {}
    if request.spectrum is not None:
        found["R_train"] = read_arrays(request.spectrum.path(request.index), SPECTRUM, order=request.block_dims)
    elif request.mean_squares is not None:
        found["R_train"] = {block: np.full(request.block_dims[block], s) for block, s in request.mean_squares.items()}
    if request.config.whitening == "mixed":
        found["R_eval"] = {block: mixing.eval_spectrum([rows]) for block, rows in query_vectors.items()}
    return found


def _spectra_facts(spectra: Mapping[str, Mapping[str, ndarray]], request: ScoreRequest) -> dict[str, Any]:
    """What there is to say of both matrices: nothing of a flat one, which its mean squares are."""
    facts = {"R_train": train_facts(spectra["R_train"], request.config.damping)} if request.spectrum else {}
    return {**facts, "R_eval": eval_facts(spectra["R_eval"])} if "R_eval" in spectra else facts


def _mixing_weight(request: ScoreRequest, spectra: Mapping[str, Mapping[str, ndarray]]) -> mixing.MixingWeight:
    return choose_mixing_weight(request.config, spectra, num_dims=sum(request.block_dims.values()))


def choose_mixing_weight(
    config: ScoreConfig, spectra: Mapping[str, Mapping[str, ndarray]], *, num_dims: int
) -> mixing.MixingWeight:
    """λ as given, as it follows from the spectra of R_train and R_eval, or 0 where R_eval takes no part."""
    if config.whitening != "mixed":
        return mixing.MixingWeight(0.0)
    if config.mixing_weight != "auto":
        return mixing.MixingWeight(float(config.mixing_weight))
    try:
        return mixing.crossing_mixing_weight(
            *(np.concatenate(list(spectra[name].values())) for name in ("R_train", "R_eval")),
            num_dims=num_dims,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def query_bases(
    request: IndexedShards, whitening: TrainWhitening, query_vectors: Mapping[str, ndarray]
) -> dict[str, Any]:
    """Every block's basis, to be computed on the workers and kept there: each shard needs all of them."""
    return {block: part(_basis, whitening, block, query_vectors[block]) for block in request.block_dims}


def _basis(whitening: TrainWhitening, block: str, query_vectors: ndarray) -> scores.QueryBasis:
    return scores.query_basis(whitening.factor(block), query_vectors)


def _rank_shard(
    path: UPath,
    common: Pass,
    bases: Mapping[str, scores.QueryBasis],
    first_position: int,
    withdrawn: ndarray | None,
) -> Rankings:
    """The shard's own best and worst candidates of every query; of all others nothing is kept."""
    parts = [
        best_of(influence, first_position + rows, top_k=common.config.top_k or None)
        for rows, influence in shard_influences(path, common, bases, withdrawn)
    ]
    return merge_rankings(parts, common.config.top_k or None)


def best_of(influence: ndarray, positions: ndarray, *, top_k: int | None) -> Rankings:
    """The best and worst of some candidates' scores [weights n queries]."""
    return {
        (number, kind): ranking.best(of_weight.T, positions, top_k=top_k, largest=kind == PROPONENT)
        for number, of_weight in enumerate(influence)
        for kind in (PROPONENT, OPPONENT)
    }


def shard_influences(
    path: UPath, common: Pass, bases: Mapping[str, scores.QueryBasis], withdrawn: ndarray | None
) -> Iterator[tuple[ndarray, ndarray]]:
    """Rows [n] of a shard that were not withdrawn and their scores [weights n queries], some at a time."""
    return row_influences(GradientReader(path), common.train_whitening.document_norms(path), common, bases, withdrawn)


def row_influences(
    reader: RowReader,
    both_norms: tuple[ndarray, ndarray],
    common: Pass,
    bases: Mapping[str, scores.QueryBasis],
    withdrawn: ndarray | None,
) -> Iterator[tuple[ndarray, ndarray]]:
    """The same of rows wherever they are kept, with their ‖ψ‖² and ‖φ‖² [n blocks]."""
    train_norms, norms = both_norms
    readouts = [scores.Readout(basis) for basis in bases.values()]
    for start, stop in reader.windows():
        coordinates = [
            _coordinates(readout, reader.row_parts(block, start, stop), train_norms[:, column], norms[:, column])
            for column, (block, readout) in enumerate(zip(bases, readouts, strict=True))
        ]
        influences = scores.influences(
            coordinates,
            train_norms[start:stop],
            list(bases.values()),
            mixing_weights=common.mixing_weights,
            unit_norm=common.config.unit_norm,
        )
        rows = np.arange(start, stop)
        if withdrawn is not None:
            rows = np.setdiff1d(rows, withdrawn, assume_unique=True)
        yield rows, influences[:, rows - start]


def _coordinates(
    readout: scores.Readout, parts: Iterable[tuple[int, ndarray]], train_norms: ndarray, norms: ndarray
) -> ndarray:
    """t [n r] of rows that come a few at a time, by the norms of all rows of their shard."""
    found = []
    for first, rows in parts:
        here = slice(first, first + len(rows))
        found.append(readout(rows, train_norms=train_norms[here], norms=norms[here]))
    return np.concatenate(found)


def merge_rankings(parts: Sequence[Rankings], top_k: int | None) -> Rankings:
    return {
        key: ranking.merge([ranked[key] for ranked in parts], top_k=top_k, largest=key[1] == PROPONENT)
        for key in parts[0]
    }
