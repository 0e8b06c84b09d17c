"""From scores of the whole corpus, a few documents at a time, to a result table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from numpy import ndarray

from trackstar.storage.layout import RANKING
from trackstar.storage.manifest import Draft
from trackstar.storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA
from trackstar.storage.tables import write_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.numerics import ranking
from trackstar.tasks.numerics.ranking import Ranked

BOTH_ENDS = (PROPONENT, OPPONENT)


def write_ranking(
    draft: Draft, ranked: Mapping[str, Ranked], *, method: str, query_ids: Sequence[str], candidates: Candidates
) -> None:
    """Write the result table of one method and say how many candidates it had."""
    named = {(method, kind): best for kind, best in ranked.items()}
    write_table(draft.path / RANKING, result_table(named, query_ids=query_ids, candidates=candidates))
    draft.facts |= {"method": method, "num_candidates": candidates.num_live}


def rank_parts(
    parts: Iterable[ndarray], candidates: Candidates, *, top_k: int, kinds: Sequence[str] = BOTH_ENDS
) -> dict[str, Ranked]:
    """The best, and the worst, of the [q n] scores that come in corpus order; of all others nothing is kept.

    Args:
        candidates: Whose scores they are, those of withdrawn documents among them.
        top_k: How many of each kind; 0 keeps all.
        kinds: PROPONENT, OPPONENT or both.
    """
    return rank_scored(_of_live(parts, candidates), top_k=top_k, kinds=kinds)


def rank_scored(
    parts: Iterable[tuple[ndarray, ndarray]], *, top_k: int, kinds: Sequence[str] = BOTH_ENDS
) -> dict[str, Ranked]:
    """The same of positions [n], ascending and in corpus order, and their scores [q n]."""
    kept: dict[str, list[Ranked]] = {kind: [] for kind in kinds}
    for positions, scores in parts:
        for kind in kinds:
            kept[kind].append(ranking.best(scores, positions, **_end(kind, top_k)))
            if top_k:
                kept[kind] = [ranking.merge(kept[kind], **_end(kind, top_k))]
    return {kind: ranking.merge(found, **_end(kind, top_k)) for kind, found in kept.items()}


def _of_live(parts: Iterable[ndarray], candidates: Candidates) -> Iterator[tuple[ndarray, ndarray]]:
    """Positions and scores of the documents that were not withdrawn."""
    start = 0
    for scores in parts:
        positions = candidates.live(start, start + scores.shape[1])
        yield positions, scores[:, positions - start]
        start += scores.shape[1]


def result_table(
    ranked: Mapping[tuple[str, str], Ranked], *, query_ids: Sequence[str], candidates: Candidates
) -> pl.DataFrame:
    """Positions in the corpus as candidate ids: one row a query, method, kind and rank.

    Args:
        ranked: By method, and PROPONENT or OPPONENT.
    """
    positions = np.unique(np.concatenate([best.positions.ravel() for best in ranked.values()]))
    ids = candidates.ids_at(positions)
    tables = [RESULT_SCHEMA.to_frame()]
    for row, query_id in enumerate(query_ids):
        for (method, kind), best in ranked.items():
            best_ids = ids.gather(np.searchsorted(positions, best.positions[row]))
            tables.append(_rows(best_ids, best.scores[row], query_id=query_id, method=method, kind=kind))
    return pl.concat(tables)


def _rows(candidate_ids: pl.Series, scores: ndarray, **constants: str) -> pl.DataFrame:
    """The rows of one query, method and kind, from the best on."""
    columns = {
        **constants,
        "rank": np.arange(1, len(scores) + 1),
        "candidate_id": candidate_ids,
        "score": scores,
    }
    return pl.DataFrame(columns, schema_overrides=dict(RESULT_SCHEMA)).select(RESULT_SCHEMA.names())


def _end(kind: str, top_k: int) -> dict[str, int | bool | None]:
    return {"top_k": top_k or None, "largest": kind == PROPONENT}
