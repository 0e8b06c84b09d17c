from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from trackstar.storage.errors import InputError
from trackstar.storage.results import RESULT_SCHEMA
from trackstar.tasks.evaluation.metrics import Estimate, evaluate, no_evidence


@dataclass(frozen=True)
class Query:
    id: str
    prompt: str = "p"
    completion: str = "c"
    relevant_ids: tuple[str, ...] | None = None


def ranking(query_id, method, ids, kind="proponent"):
    rows = [(query_id, method, kind, rank, name, 1.0 / rank) for rank, name in enumerate(ids, start=1)]
    return pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")


def patches(rows):
    return pl.DataFrame(rows, schema=["query_id", "method", "candidate_id", "probability_change"], orient="row")


QUERIES = [Query("q1", relevant_ids=("a", "b")), Query("q2", relevant_ids=("c",)), Query("q3")]
FRAME = pl.concat(
    [
        ranking("q1", "trackstar", "xab"),
        ranking("q2", "trackstar", "cxy"),
        ranking("q3", "trackstar", "xyz"),
        ranking("q1", "trackstar", "a", kind="opponent"),
        ranking("q1", "bm25", "axy"),
        ranking("q2", "bm25", "xyz"),
        ranking("q3", "bm25", "xyz"),
    ]
)


def values(metrics):
    return {metric: estimate.value for metric, estimate in metrics.items()}


def test_metrics_are_means_over_the_queries_with_evidence():
    metrics = evaluate(FRAME, QUERIES)
    assert values(metrics.methods["trackstar"]) == pytest.approx(
        {"mrr": (1 / 2 + 1) / 2, "hit_at_10": 1.0, "recall_at_10": 1.0, "precision_at_10": 0.15}
    )
    assert values(metrics.methods["bm25"]) == pytest.approx(
        {"mrr": 0.5, "hit_at_10": 0.5, "recall_at_10": 0.25, "precision_at_10": 0.05}
    )
    assert (metrics.evidence, metrics.num_queries, metrics.num_queries_with_evidence) == ("relevant_ids", 3, 2)
    assert metrics.num_ranks == {"trackstar": 3, "bm25": 3}


def test_where_relevance_comes_from_stands_beside_the_numbers():
    metrics = evaluate(FRAME, QUERIES, evidence={"q2": "aliases", "q3": "aliases"})
    assert metrics.evidence == "relevant_ids and aliases"
    assert metrics.num_queries_by_evidence == {"relevant_ids": 1, "aliases": 1}  # q3 has no evidence at all
    assert evaluate(FRAME, QUERIES[1:], evidence={"q2": "aliases"}).evidence == "aliases"


def test_rows_in_any_order_give_the_same_metrics():
    shuffled = FRAME.filter(pl.col("method") == "trackstar").sample(fraction=1, shuffle=True, seed=3)
    metrics = evaluate(shuffled, QUERIES)
    assert metrics.methods["trackstar"] == evaluate(FRAME, QUERIES).methods["trackstar"]


def test_differences_are_method_minus_reference_query_by_query():
    metrics = evaluate(FRAME, QUERIES)
    assert metrics.reference == "trackstar"
    assert list(metrics.differences) == ["bm25"]
    # q1: 1 - 1/2, q2: 0 - 1; a resample of two queries holds q1 twice, q2 twice or both.
    assert metrics.differences["bm25"]["mrr"] == Estimate(value=-0.25, low=-1.0, high=0.5)


def test_tail_patch_is_averaged_within_a_query_and_then_over_queries():
    measured = patches(
        [
            ("q1", "trackstar", "x", 0.4),
            ("q1", "trackstar", "a", 0.2),
            ("q2", "trackstar", "c", 0.1),
            ("q2", "bm25", "x", -0.1),
        ]
    )
    metrics = evaluate(FRAME, QUERIES, tail_patch=measured)
    assert metrics.methods["trackstar"]["tail_patch"].value == pytest.approx((0.3 + 0.1) / 2)
    assert metrics.methods["bm25"]["tail_patch"].value == pytest.approx(-0.1)
    assert metrics.differences["bm25"]["tail_patch"].value == pytest.approx(-0.1 - 0.1)  # q2 alone is in both


def test_without_any_evidence_the_retrieval_metrics_are_absent():
    queries = [Query("q1"), Query("q2", relevant_ids=()), Query("q3")]
    metrics = evaluate(FRAME, queries)
    assert metrics.methods == {"trackstar": {}, "bm25": {}}
    assert (metrics.evidence, metrics.num_queries_with_evidence) == (None, 0)
    with_tail_patch = evaluate(FRAME, queries, tail_patch=patches([("q1", "trackstar", "x", 0.4)]))
    assert list(with_tail_patch.methods["trackstar"]) == ["tail_patch"]


@pytest.mark.parametrize(
    ("relevant_ids", "evidence", "reason"),
    [
        (None, None, "they name neither relevant_ids nor aliases"),
        ((), None, "(2 with an empty list of relevant_ids)"),
        ((), {"q1": "aliases", "q2": "aliases"}, "(2 with aliases: no text holds the answer or one of them)"),
        ((), {"q1": "aliases", "q2": "entailment"}, "; 1 judged by the entailment model: it found none"),
    ],
)
def test_without_any_evidence_a_sentence_says_why(relevant_ids, evidence, reason):
    metrics = evaluate(FRAME, [Query(id, relevant_ids=relevant_ids) for id in ("q1", "q2")], evidence=evidence)
    assert reason in no_evidence(metrics)
    assert no_evidence(metrics).startswith("None of the 2 queries has evidence")
    assert no_evidence(evaluate(FRAME, QUERIES)) is None


def test_the_numbers_do_not_depend_on_what_else_is_compared():
    alone = evaluate(FRAME.filter(pl.col("method") == "bm25"), QUERIES)
    assert alone.methods["bm25"] == evaluate(FRAME, QUERIES).methods["bm25"]
    assert alone.differences == {}


def test_the_interval_narrows_with_the_number_of_queries():
    draw = np.random.default_rng(0)

    def width(num_queries):
        ranks = draw.integers(1, 6, size=num_queries)
        queries = [Query(f"q{index}", relevant_ids=("hit",)) for index in range(num_queries)]
        rankings = [["x"] * (rank - 1) + ["hit"] for rank in ranks]
        frame = pl.concat(ranking(query.id, "m", ids) for query, ids in zip(queries, rankings, strict=True))
        estimate = evaluate(frame, queries).methods["m"]["mrr"]
        assert estimate.low <= estimate.value <= estimate.high
        return estimate.high - estimate.low

    assert width(400) < width(25) / 2  # a quarter of the width in expectation


def test_the_dump_is_the_published_structure():
    dump = evaluate(FRAME, QUERIES).model_dump()
    assert set(dump["methods"]["bm25"]["mrr"]) == {"value", "low", "high"}
    assert set(dump) >= {"methods", "differences", "evidence", "num_queries", "num_queries_with_evidence"}


def test_a_method_that_skips_a_query_is_refused():
    with pytest.raises(ValueError, match="'bm25' ranks nothing for query 'q2'"):
        evaluate(FRAME.filter(~((pl.col("method") == "bm25") & (pl.col("query_id") == "q2"))), QUERIES)


def test_a_measurement_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a finite number; measure it again"):
        evaluate(FRAME, QUERIES, tail_patch=patches([("q1", "trackstar", "x", float("nan"))]))


def test_repeated_query_ids_are_the_users_mistake():
    with pytest.raises(InputError, match="query id 'q1' occurs more than once"):
        evaluate(FRAME, [*QUERIES, Query("q1")])
