import polars as pl

from trackstar.storage.results import RESULT_SCHEMA
from trackstar.tasks.methods.hybrid import reciprocal_rank_fusion


def ranking(method, query_id, ids, kind="proponent"):
    rows = [(query_id, method, kind, rank, name, -float(rank)) for rank, name in enumerate(ids, start=1)]
    return pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")


FIRST = pl.concat([ranking("x", "q2", "abc"), ranking("x", "q1", "bca"), ranking("x", "q2", "c", kind="opponent")])
SECOND = pl.concat([ranking("y", "q2", "bd"), ranking("y", "q1", "abc")])


def test_scores_are_sums_of_reciprocal_ranks_and_a_missing_document_adds_nothing():
    fused = reciprocal_rank_fusion([FIRST, SECOND], method="hybrid", top_k=0)
    assert fused.schema == RESULT_SCHEMA
    of_q2 = fused.filter(pl.col("query_id") == "q2")
    expected = {"b": 1 / 62 + 1 / 61, "a": 1 / 61, "d": 1 / 62, "c": 1 / 63}
    assert of_q2.select("candidate_id", "score").rows() == list(expected.items())
    assert of_q2["rank"].to_list() == [1, 2, 3, 4]
    assert set(fused["kind"]) == {"proponent"}


def test_queries_keep_their_order_and_k_cuts_each_of_them():
    fused = reciprocal_rank_fusion([FIRST, SECOND], method="hybrid", top_k=2)
    assert fused.select("query_id", "rank").rows() == [("q2", 1), ("q2", 2), ("q1", 1), ("q1", 2)]


def test_equal_scores_stand_in_the_order_of_the_first_list():
    fused = reciprocal_rank_fusion([ranking("x", "q", "ab"), ranking("y", "q", "ba")], method="hybrid", top_k=0)
    assert fused["candidate_id"].to_list() == ["a", "b"]
