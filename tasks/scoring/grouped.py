"""What else can be asked of an index: scores of some documents, influence by source, rankings without repetition."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, QUERIES
from trackstar.storage.tables import read_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index, shard_texts
from trackstar.tasks.index.withdrawals import read_ids
from trackstar.tasks.numerics.scores import QueryBasis
from trackstar.tasks.numerics.shrinkage import Spread
from trackstar.tasks.runtime.dask import compute, part, tree_merge
from trackstar.tasks.scoring.score_pass import (
    Pass,
    ScoreRequest,
    mixing_weights,
    pass_of,
    query_bases,
    read_query_vectors,
    shard_influences,
)
from trackstar.tasks.scoring.shrink import request_spread, shrunk

SHINGLE_WORDS = 3


def with_texts(frame: pl.DataFrame, index: Index) -> pl.DataFrame:
    """A result table with the text of each candidate."""
    texts = shard_texts(index.shard_paths, set(frame["candidate_id"].unique()))
    return frame.with_columns(text=pl.col("candidate_id").replace_strict(texts, return_dtype=pl.String))


def candidate_scores(request: ScoreRequest, candidate_ids: Sequence[str]) -> pl.DataFrame:
    """query_id, method, candidate_id, score of chosen documents; only the shards that hold them are read.

    Raises:
        InputError: An id is that of no document, or of one that was withdrawn.
    """
    wanted = set(candidate_ids) - request.withdrawn_ids()
    shards = [path for path in request.shard_paths if not wanted.isdisjoint(read_ids(path))]
    missing = set(candidate_ids).difference(*(read_ids(path) for path in shards), [])
    missing |= set(candidate_ids) - wanted
    if missing:
        raise InputError(f"the index has no document {min(missing)!r}, or it was withdrawn; choose among its ids")
    weights, bases = mixing_weights(request), _bases(request)
    common = pass_of(request, weights)
    shrink = _shrinkage(request, weights)
    parts = [part(_chosen_scores, path, common, bases, frozenset(wanted), shrink) for path in shards]
    scores = {id_: values for found in compute(parts, where=request.dask) for id_, values in found.items()}
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"]
    rows = [
        (query_id, method, id_, float(scores[id_][number, query]))
        for query, query_id in enumerate(query_ids)
        for number, method in enumerate(weights)
        for id_ in dict.fromkeys(candidate_ids)
    ]
    schema = {"query_id": pl.String, "method": pl.String, "candidate_id": pl.String, "score": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def grouped_influence(request: ScoreRequest, column: str) -> pl.DataFrame:
    """query_id, method, group, num_documents, sum and mean of the scores of all documents, by a corpus column.

    What is held is one number a group, query and λ. Documents without a value are a group of their own, null.

    Raises:
        InputError: The index did not keep this column.
    """
    _require_column(request, column)
    weights, bases = mixing_weights(request), _bases(request)
    candidates = Candidates(request.shards, request.index, request.tombstones)
    common, shrink = pass_of(request, weights), _shrinkage(request, weights)
    parts = [
        part(_grouped_shard, path, common, bases, column, candidates.withdrawn.get(path), shrink)
        for path in candidates.paths
    ]
    (total,) = compute([tree_merge(parts, _merge_groups)], where=request.dask)
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"]
    rows = [
        (query_id, method, group, count, float(sums[number, query]), float(sums[number, query]) / count)
        for query, query_id in enumerate(query_ids)
        for number, method in enumerate(weights)
        for group, (count, sums) in sorted(total.items(), key=lambda item: (item[0] is None, item[0] or ""))
    ]
    names = ("query_id", "method", column, "num_documents", "sum", "mean")
    types = (pl.String, pl.String, pl.String, pl.UInt64, pl.Float64, pl.Float64)
    return pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")


def collapse_duplicates(frame: pl.DataFrame, *, similarity: float = 0.8) -> pl.DataFrame:
    """A result table with texts in which only the best of near-duplicate candidates is left, ranks closed up.

    Two texts are near-duplicates where the sets of their runs of three words overlap by ``similarity`` (Jaccard). The
    column ``duplicate_ids`` has those that were folded into a candidate.
    """
    if not 0 < similarity <= 1:
        raise InputError(f"the similarity is {similarity:g}; it must be above 0, and at most 1")
    rankings = frame.sort("rank").partition_by("query_id", "method", "kind", maintain_order=True)
    return pl.concat([_collapsed(ranking, similarity) for ranking in rankings]) if rankings else frame


def _collapsed(ranking: pl.DataFrame, similarity: float) -> pl.DataFrame:
    kept: list[tuple[int, frozenset[str], list[str]]] = []
    for row, (id_, text) in enumerate(ranking.select("candidate_id", "text").iter_rows()):
        shingles = _shingles(text)
        first = next((k for k in kept if len(shingles & k[1]) >= similarity * len(shingles | k[1])), None)
        if first is None:
            kept.append((row, shingles, []))
        else:
            first[2].append(id_)
    return ranking[[row for row, _, _ in kept]].with_columns(
        rank=pl.int_range(1, len(kept) + 1, dtype=pl.UInt32, eager=True),
        duplicate_ids=pl.Series([ids for _, _, ids in kept], dtype=pl.List(pl.String)),
    )


def _shingles(text: str) -> frozenset[str]:
    words = text.lower().split()
    return frozenset(" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def _bases(request: ScoreRequest) -> dict[str, Any]:
    return query_bases(request, request.train_whitening, read_query_vectors(request))


def _shrinkage(request: ScoreRequest, weights: Mapping[str, float]) -> Spread | None:
    return None if request.config.shrink is None else request_spread(request, weights)


def _chosen_scores(
    path: UPath, common: Pass, bases: Mapping[str, QueryBasis], wanted: frozenset[str], found: Spread | None
) -> dict[str, ndarray]:
    """Scores [weights queries] of each wanted document of a shard."""
    ids = read_table(path, DOCUMENTS)["id"].to_list()
    return {
        ids[row]: shrunk(influence[:, [place]], found, common.config)[:, 0]
        for rows, influence in shard_influences(path, common, bases, None)
        for place, row in enumerate(rows)
        if ids[row] in wanted
    }


Groups = dict[str | None, tuple[int, ndarray]]  # number of documents, and sums [weights queries]


def _grouped_shard(
    path: UPath,
    common: Pass,
    bases: Mapping[str, QueryBasis],
    column: str,
    withdrawn: ndarray | None,
    found: Spread | None,
) -> Groups:
    values = read_table(path, DOCUMENTS)[column].to_list()
    parts = []
    for rows, scores in shard_influences(path, common, bases, withdrawn):
        influence = shrunk(scores, found, common.config)
        places: dict[str | None, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(values[row], []).append(place)
        parts.append({group: (len(of), influence[:, of].sum(axis=1)) for group, of in places.items()})
    return _merge_groups(parts)


def _merge_groups(parts: Sequence[Groups]) -> Groups:
    total: Groups = {}
    for groups in parts:
        for group, (count, sums) in groups.items():
            before = total.get(group, (0, np.zeros_like(sums)))
            total[group] = (before[0] + count, before[1] + sums)
    return total


def _require_column(request: ScoreRequest, column: str) -> None:
    kept = read_table(request.shard_paths[0], DOCUMENTS).columns
    if column not in kept:
        raise InputError(
            f"the index has no column {column!r} but {', '.join(kept)}; index with --extra-columns {column}"
        )
