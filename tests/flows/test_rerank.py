"""Whole gradients for the first few: against dense float64, and against an index of whole gradients."""

import json

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, score
from tests.oracle import Oracle
from tests.reference import influence
from tests.tiny import QUERIES, TEXTS
from trackstar.flows.attribute import attribute, scores
from trackstar.flows.config import AttributeConfig
from trackstar.storage.errors import InputError

pytestmark = pytest.mark.usefixtures("prefect_server")

SCORE_TOLERANCE = 1e-4  # float32 gradients
KINDS = {"proponent": -1, "opponent": 1}


def reranked(index, queries, out, **settings):
    config = {"index": str(index), "queries": str(queries), "out": str(out), "score": settings}
    record = attribute(AttributeConfig.model_validate(config))
    assert record["methods"] == json.loads((out / "run.json").read_text())["methods"]
    return pl.read_parquet(out / "proponents.parquet"), record["methods"]["trackstar"]


def test_all_documents_reranked_have_the_scores_of_an_index_of_whole_gradients(llama, corpus, queries, tmp_path):
    gradient = {"projection_dim": 2, "correction": "kfac"}
    build(tmp_path / "index", llama, corpus, gradient=gradient)
    build(tmp_path / "whole", llama, corpus, gradient={"projection": "none", "correction": "kfac"})
    expected = score(tmp_path / "whole", queries, tmp_path / "out", mixing_weight=0.5)
    settings = {"mixing_weight": 0.5, "rerank": len(TEXTS), "top_k": 4}
    frame, method = reranked(tmp_path / "index", queries, tmp_path / "first", **settings)
    for kind, sign in KINDS.items():
        for number, query in enumerate(QUERIES):
            found = frame.filter((pl.col("kind") == kind) & (pl.col("query_id") == query["id"]))
            order = np.argsort(sign * expected[:, number], kind="stable")[:4]
            assert found["candidate_id"].to_list() == [f"d{position}" for position in order]
            assert found["rank"].to_list() == [1, 2, 3, 4]
            np.testing.assert_allclose(found["score"], expected[order, number], atol=SCORE_TOLERANCE)
    assert method["rerank"]["mean_rank_change"] > 0
    assert method["rerank"]["num_documents"] == len(TEXTS)
    assert method["rerank"]["seconds"] > 0
    with pytest.raises(InputError, match="holds whole gradients"):
        reranked(tmp_path / "whole", queries, tmp_path / "again", **settings)
    with pytest.raises(InputError, match="rerank is 20, and these are scores of the store"):
        scores(str(tmp_path / "index"), str(queries), ["d1"], rerank=20)


def test_few_candidates_are_scored_by_the_definition_among_themselves_in_little_memory(
    llama, corpus, queries, tmp_path, monkeypatch
):
    monkeypatch.setattr("trackstar.tasks.scoring.rerank.HELD_BYTES", 1)  # a query at a time
    monkeypatch.setattr("trackstar.tasks.scoring.rerank.BATCH_BYTES", 1)  # a document at a time
    build(tmp_path / "index", llama, corpus, gradient={"projection_dim": 2})
    documents, asked = Oracle(llama, TEXTS, QUERIES).vectors("factored")
    settings = {"mixing_weight": 0.7, "damping": 0.1, "mixing_weights": [0.2]}
    first, _ = reranked(tmp_path / "index", queries, tmp_path / "first", top_k=5, **settings)
    frame, method = reranked(tmp_path / "index", queries, tmp_path / "out", rerank=5, top_k=3, **settings)
    rows = sorted({int(name[1:]) for name in first["candidate_id"]})
    place = {f"d{row}": number for number, row in enumerate(rows)}
    new = 0
    for name, weight in (("trackstar", 0.7), ("trackstar@0.2", 0.2)):
        expected = influence([block[rows] for block in documents], asked, mixing_weight=weight, is_flat=True)
        for number, query in enumerate(QUERIES):
            for kind, sign in KINDS.items():
                of_query = (pl.col("query_id") == query["id"]) & (pl.col("kind") == kind) & (pl.col("method") == name)
                before, after = (of.filter(of_query)["candidate_id"].to_list() for of in (first, frame))
                assert after == sorted(before, key=lambda id_: sign * expected[place[id_], number])[:3]
                found = frame.filter(of_query)["score"]
                np.testing.assert_allclose(found, expected[[place[id_] for id_ in after], number], atol=SCORE_TOLERANCE)
                if (name, kind) == ("trackstar", "proponent"):
                    new += len(set(after) - set(before[:3]))
    assert method["rerank"]["mean_new_in_top_k"] == pytest.approx(new / len(QUERIES))
