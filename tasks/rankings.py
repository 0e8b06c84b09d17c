"""From scores of the whole corpus, a few documents at a time, to a result table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy import ndarray

from storage.layout import RANKING
from storage.manifest import Artifact, Draft
from storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA
from storage.tables import write_table
from tasks.numerics import ranking
from tasks.numerics.ranking import Ranked
from tasks.tombstones import read_ids, read_tombstones

BOTH_ENDS = (PROPONENT, OPPONENT)


class Candidates(NamedTuple):
    """The documents of some shards, in their order.

    Attributes:
        ids: Of all of them.
        are_live: Which of them were not withdrawn.
    """

    ids: pl.Series
    are_live: ndarray


def read_candidates(shards: Sequence[Artifact], index: str, tombstones: Artifact | None) -> Candidates:
    ids = pl.concat([read_ids(shard.path(index)) for shard in shards])
    withdrawn = read_tombstones(tombstones, index)["id"]
    return Candidates(ids, ~ids.is_in(withdrawn.implode()).to_numpy())


def write_ranking(
    draft: Draft, ranked: Mapping[str, Ranked], *, method: str, query_ids: Sequence[str], candidates: Candidates
) -> None:
    """Write the result table of one method and say how many candidates it had."""
    table = ranking_table(ranked, method=method, query_ids=query_ids, candidate_ids=candidates.ids)
    write_table(draft.path / RANKING, table)
    draft.facts |= {"method": method, "num_candidates": int(candidates.are_live.sum())}


def rank_parts(
    parts: Iterable[ndarray], are_live: ndarray, *, top_k: int, kinds: Sequence[str] = BOTH_ENDS
) -> dict[str, Ranked]:
    """The best, and the worst, of the [q n] scores that come in corpus order; of all others nothing is kept.

    Args:
        are_live: Which documents [n of all parts] take part.
        top_k: How many of each kind; 0 keeps all.
        kinds: PROPONENT, OPPONENT or both.
    """
    kept: dict[str, Ranked] = {}
    start = 0
    for scores in parts:
        rows = np.flatnonzero(are_live[start : start + scores.shape[1]])
        for kind in kinds:
            settings = {"top_k": top_k or None, "largest": kind == PROPONENT}
            new = ranking.best(scores[:, rows], start + rows, **settings)
            kept[kind] = ranking.merge([kept[kind], new], **settings) if kind in kept else new
        start += scores.shape[1]
    return kept


def ranking_table(
    ranked: Mapping[str, Ranked], *, method: str, query_ids: Sequence[str], candidate_ids: pl.Series
) -> pl.DataFrame:
    """Positions in the corpus as candidate ids, one row a query, kind and rank."""
    tables = [RESULT_SCHEMA.to_frame()]
    for row, query_id in enumerate(query_ids):
        for kind, best in ranked.items():
            ids = candidate_ids.gather(best.positions[row])
            tables.append(ranked_rows(ids, best.scores[row], query_id=query_id, method=method, kind=kind))
    return pl.concat(tables)


def ranked_rows(candidate_ids: pl.Series, scores: ndarray, *, query_id: str, method: str, kind: str) -> pl.DataFrame:
    """The rows of the result table for one query, method and kind, from the best on."""
    columns = {
        "query_id": query_id,
        "method": method,
        "kind": kind,
        "rank": np.arange(1, len(scores) + 1),
        "candidate_id": candidate_ids,
        "score": scores,
    }
    return pl.DataFrame(columns, schema_overrides=dict(RESULT_SCHEMA))
