import numpy as np
import polars as pl
import pytest
from rank_bm25 import BM25Okapi
from upath import UPath

from tests.corpora import write_texts
from tests.numerics.test_bm25 import zipf_texts
from trackstar.storage.layout import RANKING
from trackstar.storage.queries import Query
from trackstar.storage.results import RESULT_SCHEMA
from trackstar.storage.tables import read_table
from trackstar.tasks.index.withdrawals import TombstoneRequest, Withdrawal, write_tombstones
from trackstar.tasks.methods import bm25 as baselines
from trackstar.tasks.methods.bm25 import BaselineRequest, rank_by_baseline, search_text
from trackstar.tasks.numerics.words import words
from trackstar.tasks.runtime.stage import build

QUERIES = tuple(
    Query(id=f"q{number}", prompt=text or "w1", completion=" w2") for number, text in enumerate(zipf_texts(5, seed=8))
)


def cut(texts, *sizes):
    """Texts by id as shards of these sizes, the last one of what is left."""
    pairs = [(f"d{number}", text) for number, text in enumerate(texts)]
    starts = np.cumsum([0, *sizes]).tolist()
    return [dict(pairs[start:stop]) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def withdraw(index, *ids):
    withdrawal = Withdrawal(ids=ids, at="2026-01-01T00:00:00+00:00", reason="a reason")
    return build(write_tombstones.body, TombstoneRequest(index=str(index), previous=None, withdrawal=withdrawal))


def rank(index, shards, *, method="bm25", queries=QUERIES, top_k=5, gone=()):
    """The result table of one method over shards of texts."""
    request = BaselineRequest(
        index=str(index),
        shards=write_texts(index, shards),
        tombstones=withdraw(index, *gone) if gone else None,
        method=method,
        queries=tuple(queries),
        top_k=top_k,
    )
    artifact = build(rank_by_baseline.body, request)
    return read_table(artifact.path(str(index)), RANKING), artifact.facts


def test_the_table_ranks_the_documents_and_names_no_opponents(tmp_path):
    texts = {"a": "paris is big", "b": "the capital of france is paris", "c": "a fox", "d": "a hen", "e": "an owl"}
    query = Query(id="q1", prompt="The capital of France is", completion=" Paris")
    table, _ = rank(UPath(tmp_path), [texts], queries=[query], top_k=2)
    assert table.schema == RESULT_SCHEMA
    assert table.drop("score").rows() == [("q1", "bm25", "proponent", 1, "b"), ("q1", "bm25", "proponent", 2, "a")]


@pytest.mark.parametrize("method", ["bm25", "random"])
def test_the_ranking_is_the_same_however_the_corpus_is_cut(tmp_path, monkeypatch, method):
    texts = zipf_texts(60, seed=7)
    whole, _ = rank(UPath(tmp_path / "whole"), cut(texts), method=method)
    monkeypatch.setattr(baselines, "DOCUMENTS_AT_ONCE", 9 if method == "bm25" else baselines.DOCUMENTS_AT_ONCE)
    in_parts, _ = rank(UPath(tmp_path / "parts"), cut(texts, 25, 0, 3), method=method)
    assert in_parts.equals(whole)


def test_the_ranking_is_that_of_rank_bm25(tmp_path):
    texts = zipf_texts(60, seed=9)
    table, _ = rank(UPath(tmp_path), cut(texts, 40), top_k=0)
    library = BM25Okapi([words(text) for text in texts])
    for query in QUERIES:
        expected = library.get_scores(words(search_text(query)))
        of_query = table.filter(pl.col("query_id") == query.id)
        assert sorted(of_query["candidate_id"]) == sorted(f"d{number}" for number in range(60))
        found = [expected[int(id_[1:])] for id_ in of_query["candidate_id"]]
        np.testing.assert_allclose(of_query["score"], found, rtol=1e-12, atol=1e-12)  # the same terms, another order
        assert of_query["score"].is_sorted(descending=True)


def test_a_withdrawn_document_counts_nowhere(tmp_path):
    texts = cut(zipf_texts(30, seed=10), 12)
    gone = ("d3", "d12", "d29")
    table, facts = rank(UPath(tmp_path / "withdrawn"), texts, gone=gone, top_k=0)
    left = [{id_: text for id_, text in shard.items() if id_ not in gone} for shard in texts]
    without, _ = rank(UPath(tmp_path / "without"), left, top_k=0)
    assert table.equals(without)
    assert facts["num_candidates"] == 27


def test_chance_has_two_ends_and_repeats_itself(tmp_path):
    shards = cut(zipf_texts(20, seed=11))
    first, _ = rank(UPath(tmp_path / "1"), shards, method="random", top_k=2)
    again, _ = rank(UPath(tmp_path / "2"), shards, method="random", top_k=2)
    assert first.equals(again)
    assert first["kind"].value_counts().sort("kind")["count"].to_list() == [10, 10]
    assert first.group_by("query_id").agg(pl.col("candidate_id").n_unique())["candidate_id"].to_list() == [4] * 5


def test_no_query_gives_no_rows(tmp_path):
    table, _ = rank(UPath(tmp_path), cut(["red fox"]), queries=[])
    assert table.schema == RESULT_SCHEMA
    assert table.is_empty()
