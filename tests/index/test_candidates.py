import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from tests.corpora import write_texts
from tests.methods.test_bm25 import withdraw
from trackstar.storage.results import OPPONENT, PROPONENT, RESULT_SCHEMA
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.scoring.rankings import rank_parts, result_table

SIZES = (3, 0, 4, 1)
IDS = [f"d{number}" for number in range(sum(SIZES))]
GONE = ("d2", "d3", "d7")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    index = UPath(tmp_path_factory.mktemp("index"))
    bounds = itertools.pairwise(np.cumsum([0, *SIZES]))
    shards = write_texts(index, [dict.fromkeys(IDS[a:b], "a text") for a, b in bounds])
    return Candidates(shards, str(index), withdraw(index, *GONE))


def test_withdrawn_documents_keep_their_positions_and_are_not_live(candidates):
    assert candidates.num_positions == len(IDS)
    assert candidates.num_live == len(IDS) - len(GONE)
    assert candidates.live(0, len(IDS)).tolist() == [0, 1, 4, 5, 6]
    assert candidates.live(2, 5).tolist() == [4]
    assert [start for _, start in candidates.shards()] == [0, 3, 7]  # none for the shard without documents


def test_ids_are_found_by_position_whichever_shards_they_are_in(candidates):
    for positions in ([], [0], [2, 3], [0, 6, 7], range(len(IDS))):
        wanted = np.array(positions, dtype=np.int64)
        assert candidates.ids_at(wanted).to_list() == [IDS[position] for position in positions]


@given(
    scores=st.lists(st.integers(-3, 3), min_size=len(IDS), max_size=len(IDS)),
    cuts=st.lists(st.integers(0, len(IDS)), max_size=3).map(sorted),
    top_k=st.integers(0, 10),
)
@settings(deadline=None)
def test_a_ranking_is_that_of_a_full_stable_sort_of_the_live(candidates, scores, cuts, top_k):
    row = np.array([scores], dtype=np.float64)
    ranked = rank_parts(np.split(row, cuts, axis=1), candidates, top_k=top_k)
    live = candidates.live(0, len(IDS)).tolist()
    for kind, sign in ((PROPONENT, -1), (OPPONENT, 1)):
        expected = sorted(live, key=lambda position: (sign * scores[position], position))[: top_k or None]
        assert ranked[kind].positions.tolist() == [expected]
        assert ranked[kind].scores.tolist() == [[scores[position] for position in expected]]


def test_rows_hold_both_ends_with_their_scores(candidates):
    scores = np.array([[0.3, -0.2, 0, 0, 0.9, 0.1, 0.1, 0], [0.0, 0.0, 0, 0, -1.0, 0.5, 0.1, 9]])
    ranked = rank_parts([scores], candidates, top_k=1)
    named = {("dot", kind): best for kind, best in ranked.items()}
    table = result_table(named, query_ids=["q1", "q2"], candidates=candidates)
    assert table.schema == RESULT_SCHEMA
    assert table.rows() == [
        ("q1", "dot", "proponent", 1, "d4", 0.9),
        ("q1", "dot", "opponent", 1, "d1", -0.2),
        ("q2", "dot", "proponent", 1, "d5", 0.5),
        ("q2", "dot", "opponent", 1, "d4", -1.0),
    ]


def test_no_ranking_of_no_query_has_a_row(candidates):
    ranked = rank_parts([np.empty((0, len(IDS)))], candidates, top_k=2)
    table = result_table({("dot", PROPONENT): ranked[PROPONENT]}, query_ids=[], candidates=candidates)
    assert table.equals(pl.DataFrame(schema=RESULT_SCHEMA))
