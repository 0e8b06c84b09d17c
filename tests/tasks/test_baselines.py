from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from storage.results import RESULT_SCHEMA
from tasks.baselines import bm25, bm25_scores, result_rows, top_and_bottom
from tasks.numerics.bm25 import tokenize


@dataclass(frozen=True)
class Query:
    id: str
    prompt: str
    completion: str
    relevant_ids: tuple[str, ...] | None = None


def zipf_texts(num_texts, *, seed, longest=60):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, longest, size=num_texts)
    return [" ".join(f"w{word}" for word in draw.zipf(1.3, size=length) % 5000) for length in lengths]


def library_scores(documents, queries):
    library = BM25Okapi([tokenize(text) for text in documents])
    return np.stack([library.get_scores(tokenize(text)) for text in queries])


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_rank_bm25(seed):
    documents, queries = zipf_texts(400, seed=seed), zipf_texts(20, seed=seed + 100)
    expected = library_scores(documents, queries)
    # The same float64 terms added in another order.
    np.testing.assert_allclose(bm25_scores(documents, queries), expected, rtol=1e-12, atol=1e-12)
    assert (expected > 0).any()


def test_a_word_the_query_repeats_counts_again():
    documents = ["red fox", "blue whale", "green frog", "grey wolf"]
    once, twice = bm25_scores(documents, ["fox", "fox fox"])
    np.testing.assert_allclose(twice, 2 * once)


def test_words_are_unicode_runs_in_lower_case():
    assert tokenize("Die HAUPTSTADT von Österreich: Wien (1,9 Mio.) – 東京_2020!") == [
        *("die", "hauptstadt", "von", "österreich", "wien", "1", "9", "mio", "東京_2020")
    ]


@pytest.mark.parametrize("documents", [[], ["", "  "], ["...", "—"]])
def test_a_corpus_without_words_scores_zero(documents):
    scores = bm25_scores(documents, ["what is it", ""])
    assert scores.shape == (2, len(documents))
    assert not scores.any()


def test_a_document_without_words_scores_zero_among_others():
    documents = ["red fox", "", "blue whale", "green frog"]
    assert bm25_scores(documents, ["red frog whale"])[0, 1] == 0
    np.testing.assert_allclose(bm25_scores(documents, ["red frog"]), library_scores(documents, ["red frog"]))


def test_sharing_a_word_never_counts_against_a_document():
    documents, query = ["the red fox", "the red hen", "the blue"], "the red"
    assert library_scores(documents, [query]).min() < 0  # what this guards against is really there
    assert bm25_scores(documents, [query]).min() >= 0


def test_no_query_gives_no_rows():
    assert bm25_scores(["red fox"], []).shape == (0, 1)
    assert bm25({"d1": "red fox"}, [], k=3).schema == RESULT_SCHEMA


def test_the_table_ranks_the_documents_and_names_no_opponents():
    documents = {"a": "paris is big", "b": "the capital of france is paris", "c": "a fox", "d": "a hen", "e": "an owl"}
    table = bm25(documents, [Query("q1", "The capital of France is", " Paris")], k=2)
    assert table.schema == RESULT_SCHEMA
    assert table.select("query_id", "method", "kind", "rank", "candidate_id").rows() == [
        ("q1", "bm25", "proponent", 1, "b"),
        ("q1", "bm25", "proponent", 2, "a"),
    ]


def test_queries_in_batches_give_the_same_table(monkeypatch):
    documents = {f"d{index}": text for index, text in enumerate(zipf_texts(50, seed=7))}
    queries = [Query(f"q{index}", text, "") for index, text in enumerate(zipf_texts(7, seed=8))]
    whole = bm25(documents, queries, k=5)
    monkeypatch.setattr("tasks.baselines.SCORES_AT_ONCE", 100)
    assert bm25(documents, queries, k=5).equals(whole)


def test_k_zero_keeps_every_candidate():
    documents = {f"d{index}": text for index, text in enumerate(zipf_texts(30, seed=9))}
    table = bm25(documents, [Query("q", "w1 w2", "w3")], k=0)
    assert sorted(table["candidate_id"]) == sorted(documents)


@given(
    scores=st.lists(st.integers(-3, 3), min_size=0, max_size=30).map(lambda values: np.array(values, dtype=float)),
    k=st.integers(0, 35),
)
@settings(deadline=None)
def test_top_and_bottom_are_those_of_a_full_stable_sort(scores, k):
    top, bottom = top_and_bottom(scores, k=k)
    by_score = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert top.tolist() == by_score[: k or None]
    by_score = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    assert bottom.tolist() == by_score[: k or None]


def test_a_score_without_a_place_in_an_order_is_refused():
    with pytest.raises(ValueError, match="score nan has no place"):
        top_and_bottom(np.array([0.1, np.nan]), k=1)


def test_rows_hold_both_ends_with_their_scores():
    scores = np.array([[0.3, -0.2, 0.9], [0.0, 0.0, -1.0]], dtype=np.float32)
    table = result_rows(scores, method="dot", query_ids=["q1", "q2"], candidate_ids=["a", "b", "c"], k=1)
    assert table.schema == RESULT_SCHEMA
    assert table.drop("score").rows() == [
        ("q1", "dot", "proponent", 1, "c"),
        ("q1", "dot", "opponent", 1, "b"),
        ("q2", "dot", "proponent", 1, "a"),
        ("q2", "dot", "opponent", 1, "c"),
    ]
    assert table["score"].cast(pl.Float32).to_list() == pytest.approx([0.9, -0.2, 0.0, -1.0])
