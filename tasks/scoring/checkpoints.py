"""Several checkpoints of one training in one answer: the sum of their scores over the same documents.

    I(z_m, z_q) = Σ_c w_c I_c(z_m, z_q)        w_c = η_c / mean(η), η_c the learning rate at checkpoint c; or 1

Each checkpoint scores with its own gradients, R and λ. Documents are matched by id: a shard of the first index is
summed with the shards of the others that hold its documents, one of theirs where corpora were cut alike. Of scores
nothing is held but those of a shard; of every index its ids.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import RANKING, SHARES
from trackstar.storage.manifest import Draft
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import write_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.withdrawals import read_ids
from trackstar.tasks.numerics.scores import QueryBasis
from trackstar.tasks.runtime.dask import compute, part, tree_merge
from trackstar.tasks.runtime.stage import StageRequest, stage
from trackstar.tasks.scoring.rankings import result_table
from trackstar.tasks.scoring.score_pass import (
    Pass,
    Rankings,
    ScoreRequest,
    best_of,
    chosen_weights,
    merge_rankings,
    pass_of,
    query_bases,
    read_query_vectors,
    shard_influences,
)
from trackstar.tasks.scoring.shrink import measure, query_ids, write_shrunk

ID = "id"


class Weighted(NamedTuple):
    """How a checkpoint counts.

    Attributes:
        weight: w_c.
        learning_rate: η_c, or None where not every checkpoint knows its own; then all weights are 1.
    """

    weight: float
    learning_rate: float | None


class JointRequest(StageRequest):
    """One query set to be scored against several indexes; the ranking is kept in the first.

    Attributes:
        scored: What is to be scored in each index.
        checkpoints: Directory of each checkpoint.
    """

    kind: ClassVar[str] = "joint"
    version: ClassVar[int] = 1

    scored: tuple[ScoreRequest, ...]
    checkpoints: tuple[str, ...]
    weights: tuple[Weighted, ...]

    @property
    def label(self) -> str:
        return f"{self.scored[0].label} over {len(self.scored)} checkpoints"

    def inputs(self) -> dict[str, Any]:
        return {
            "scored": [request.identity() for request in self.scored],
            "weights": [tuple(weighted) for weighted in self.weights],
            "shrink": self.scored[0].config.shrink,
        }


class Read(NamedTuple):
    """Rows of another index's shard, and the places of the same documents among those that are asked for."""

    path: UPath
    rows: ndarray
    places: ndarray


Source = tuple[float, Pass, Mapping[str, QueryBasis]]  # of each checkpoint: its weight, pass and bases
Work = tuple[ndarray, list[list[Read]]]  # of a shard of the first index: positions, and what is read in every index


def weights_of(learning_rates: Sequence[float | None]) -> tuple[Weighted, ...]:
    """By learning rate, their mean 1; equal where one is not known, or all are 0."""
    if any(rate is None for rate in learning_rates) or not sum(learning_rates) > 0:
        return tuple(Weighted(1.0, None) for _ in learning_rates)
    mean = sum(learning_rates) / len(learning_rates)
    return tuple(Weighted(rate / mean, rate) for rate in learning_rates)


@stage
def rank_jointly(request: JointRequest, draft: Draft) -> None:
    """Write each query's proponents and opponents by the sum over checkpoints, and the parts of their scores."""
    first = request.scored[0]
    chosen = [chosen_weights(scored) for scored in request.scored]
    methods = list(chosen[0][0])
    sources = [
        (weighted.weight, pass_of(scored, weights), _bases(scored))
        for scored, weighted, (weights, _) in zip(request.scored, request.weights, chosen, strict=True)
    ]
    candidates = Candidates(first.shards, first.index, first.tombstones)
    work = _matched(request, candidates)
    parts = [part(_rank_shard, positions, reads, sources, first.config.top_k) for positions, reads in work]
    merge = partial(merge_rankings, top_k=first.config.top_k or None)
    (ranked,) = compute([tree_merge(parts, merge)], where=first.dask)
    named = {(methods[number], kind): best for (number, kind), best in ranked.items()}
    ranking = result_table(named, query_ids=query_ids(first), candidates=candidates)
    shares = _shares(request, ranking, candidates, work, sources)
    write_table(draft.path / SHARES, shares)
    num_candidates = sum(len(positions) for positions, _ in work)
    draft.facts |= {**chosen[0][1], "num_candidates": num_candidates}
    draft.facts["checkpoints"] = _checkpoint_facts(request, [weights[methods[0]] for weights, _ in chosen], shares)
    if first.config.shrink is None:
        write_table(draft.path / RANKING, ranking)
        return
    found = measure(
        lambda queries: [part(_shard_scores, positions, reads, sources, queries) for positions, reads in work],
        num_queries=first.queries.facts["num_queries"],
        num_scores=len(methods) * num_candidates,
        z=first.config.shrink,
        where=first.dask,
    )
    write_shrunk(draft, ranking, found, query_ids=query_ids(first), z=first.config.shrink)


def _bases(request: ScoreRequest) -> dict[str, Any]:
    return query_bases(request, request.train_whitening, read_query_vectors(request))


def _matched(request: JointRequest, candidates: Candidates) -> list[Work]:
    """What is to be read for every shard of the first index, documents that any index has withdrawn left out.

    Raises:
        InputError: The indexes do not hold the same documents.
    """
    withdrawn = set().union(*(scored.withdrawn_ids() for scored in request.scored))
    tables = [_places(scored, withdrawn) for scored in request.scored]
    _require_same(request, tables)
    of_shards = {shard: table for (shard,), table in tables[0].partition_by("shard", as_dict=True).items()}
    others = [Candidates(scored.shards, scored.index, scored.tombstones).paths for scored in request.scored]
    work = []
    for number, (_, start) in enumerate(candidates.shards()):
        if (mine := of_shards.get(number)) is not None:
            asked = mine.select(ID).with_row_index("place")
            reads = [_reads(asked, table, paths) for table, paths in zip(tables, others, strict=True)]
            work.append((start + mine["row"].to_numpy().astype(np.int64), reads))
    if not work:
        raise InputError(f"every document of {request.index} was withdrawn, so there is nothing to score; index others")
    return work


def _places(request: ScoreRequest, withdrawn: set[str]) -> pl.DataFrame:
    """Id, shard and row of every document that is left."""
    tables = [pl.DataFrame(schema={"row": pl.UInt32, ID: pl.String, "shard": pl.Int32})]
    for number, path in enumerate(Candidates(request.shards, request.index, request.tombstones).paths):
        ids = read_ids(path).alias(ID).to_frame().with_row_index("row")
        tables.append(ids.with_columns(shard=pl.lit(number, pl.Int32)))
    left_out = pl.DataFrame({ID: sorted(withdrawn)}, schema={ID: pl.String})
    return pl.concat(tables).join(left_out, on=ID, how="anti", maintain_order="left")


def _require_same(request: JointRequest, tables: Sequence[pl.DataFrame]) -> None:
    names = [scored.index for scored in request.scored]
    for name, table in zip(names[1:], tables[1:], strict=True):
        for here, there, one, other in ((names[0], name, tables[0], table), (name, names[0], table, tables[0])):
            missing = one.join(other, on=ID, how="anti")
            if len(missing):
                raise InputError(
                    f"{here} holds document {missing[ID].min()!r} and {there} does not; ask indexes of the same "
                    "documents together, or withdraw it"
                )


def _reads(asked: pl.DataFrame, table: pl.DataFrame, paths: Sequence[UPath]) -> list[Read]:
    found = asked.join(table, on=ID, maintain_order="left").partition_by("shard", as_dict=True, maintain_order=True)
    return [Read(paths[shard], rows["row"].to_numpy(), rows["place"].to_numpy()) for (shard,), rows in found.items()]


def _parts(reads: Sequence[Sequence[Read]], sources: Sequence[Source], num_rows: int) -> list[ndarray]:
    """Each checkpoint's part [weights n queries] of the scores of some documents."""
    parts = []
    for (weight, common, bases), own in zip(sources, reads, strict=True):
        num_queries = len(next(iter(bases.values())).coordinates)
        scores = np.empty((len(common.mixing_weights), num_rows, num_queries))
        for path, rows, places in own:
            of_shard = np.concatenate([found for _, found in shard_influences(path, common, bases, None)], axis=1)
            scores[:, places] = weight * of_shard[:, rows]
        parts.append(scores)
    return parts


def _rank_shard(positions: ndarray, reads: list[list[Read]], sources: list[Source], top_k: int) -> Rankings:
    return best_of(sum(_parts(reads, sources, len(positions))), positions, top_k=top_k or None)


def _shard_scores(positions: ndarray, reads: list[list[Read]], sources: list[Source], queries: slice) -> ndarray:
    scores = sum(_parts(reads, sources, len(positions)))
    return scores[:, :, queries].transpose(0, 2, 1).astype(np.float32)


def _chosen_parts(positions: ndarray, reads: list[list[Read]], sources: list[Source], chosen: ndarray) -> ndarray:
    """Parts [checkpoints weights n queries] of the chosen positions of a shard."""
    return np.stack(_parts(reads, sources, len(positions)))[:, :, np.searchsorted(positions, chosen)]


def _shares(
    request: JointRequest,
    ranking: pl.DataFrame,
    candidates: Candidates,
    work: Sequence[Work],
    sources: Sequence[Source],
) -> pl.DataFrame:
    """query_id, method, kind, candidate_id, index, part: the parts of a score, whose sum it is before any shrinking."""
    wanted = set(ranking["candidate_id"].unique())
    tasks, ids = [], []
    for positions, reads in work:
        names = candidates.ids_at(positions)
        is_wanted = names.is_in(list(wanted)).to_numpy()
        if is_wanted.any():
            tasks.append(part(_chosen_parts, positions, reads, list(sources), positions[is_wanted]))
            ids += names.filter(is_wanted).to_list()
    parts = np.concatenate(compute(tasks, where=request.scored[0].dask), axis=2)
    methods = list(dict.fromkeys(ranking["method"]))
    columns = [("method", methods), ("candidate_id", ids), ("query_id", query_ids(request.scored[0]))]
    rows = tuple(
        ranking[name].replace_strict({of: place for place, of in enumerate(known)}, return_dtype=pl.Int64).to_numpy()
        for name, known in columns
    )
    keys = ranking.select("query_id", "method", "kind", "candidate_id")
    return pl.concat(
        keys.with_columns(index=pl.lit(scored.index), part=pl.Series(of_checkpoint[rows]))
        for scored, of_checkpoint in zip(request.scored, parts, strict=True)
    )


def _checkpoint_facts(
    request: JointRequest, mixing_weights: Sequence[float], shares: pl.DataFrame
) -> list[dict[str, Any]]:
    """Of each checkpoint how it counts, and its share: of the absolute parts of all proponents' scores."""
    mine = shares.filter(pl.col("kind") == PROPONENT)
    sizes = [mine.filter(pl.col("index") == scored.index)["part"].abs().sum() for scored in request.scored]
    total = sum(sizes) or 1.0
    return [
        {
            "index": scored.index,
            "checkpoint": checkpoint,
            **weighted._asdict(),
            "mixing_weight": λ,
            "share": size / total,
        }
        for scored, checkpoint, weighted, λ, size in zip(
            request.scored, request.checkpoints, request.weights, mixing_weights, sizes, strict=True
        )
    ]
