import json

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, score
from tests.oracle import Oracle
from tests.reference import influence
from tests.tiny import QUERIES, TEXTS
from trackstar.flows.attribute import attribute
from trackstar.flows.config import AttributeConfig

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.numerical]

# Gradients are float32: seven digits, of which a dot product over some hundred dimensions and R^-1 cost a few.
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def llama_oracle(llama):
    return Oracle(llama, TEXTS, QUERIES)


@pytest.fixture(scope="module")
def gpt2_oracle(gpt2):
    return Oracle(gpt2, TEXTS, QUERIES)


def test_unprojected_scores_are_those_of_the_definition_at_any_score_setting(
    llama, llama_oracle, corpus, queries, tmp_path
):
    build(tmp_path / "index", llama, corpus, gradient={"projection": "none"})
    documents, asked = llama_oracle.vectors("factored")
    for number, settings in enumerate(
        [
            {"mixing_weight": 0.9, "damping": 0.1},
            {"mixing_weight": 0.5, "damping": 1.0, "unit_norm": False},
            {"whitening": "train", "damping": 0.3},
            {"whitening": "none", "unit_norm": False},
            {"whitening": "none"},
        ]
    ):
        expected = influence(documents, asked, **{"mixing_weight": 0.0, "damping": 0.1, **settings})
        scores = score(tmp_path / "index", queries, tmp_path / f"out{number}", **settings)
        np.testing.assert_allclose(scores, expected, atol=SCORE_TOLERANCE * np.abs(expected).max(), err_msg=settings)


@pytest.mark.parametrize("mode", ["factored", "full", "estimated", "none"])
def test_unprojected_scores_are_those_of_the_definition_with_any_second_moment_and_texts_of_several_windows(
    gpt2, gpt2_oracle, corpus, queries, tmp_path, mode
):
    build(tmp_path / "index", gpt2, corpus, gradient={"projection": "none"}, mode=mode)
    documents, asked = gpt2_oracle.vectors(mode)
    expected = influence(documents, asked, mixing_weight=0.9, damping=0.1)
    scores = score(tmp_path / "index", queries, tmp_path / "out", mixing_weight=0.9)
    np.testing.assert_allclose(scores, expected, atol=SCORE_TOLERANCE)


def test_projected_scores_are_those_of_the_definition_with_the_same_projection(
    indexed, llama_oracle, queries, tmp_path
):
    expected = influence(
        *llama_oracle.vectors("factored", projection_dim=4, pooled=True), mixing_weight=0.9, damping=0.1
    )
    scores = score(indexed(), queries, tmp_path / "out", mixing_weight=0.9)
    np.testing.assert_allclose(scores, expected, atol=SCORE_TOLERANCE)


def test_a_projection_with_a_full_second_moment_is_that_of_the_divided_gradient(
    gpt2, gpt2_oracle, corpus, queries, tmp_path
):
    gradient = {"projection_dim": 4, "pooling": "concatenate"}
    build(tmp_path / "index", gpt2, corpus, gradient=gradient, mode="full")
    expected = influence(*gpt2_oracle.vectors("full", projection_dim=4), mixing_weight=0.9, damping=0.1)
    scores = score(tmp_path / "index", queries, tmp_path / "out", mixing_weight=0.9)
    np.testing.assert_allclose(scores, expected, atol=SCORE_TOLERANCE)


def test_the_sizes_of_batches_and_shards_change_scores_by_rounding_alone(llama, corpus, queries, tmp_path):
    gradient = {"projection_dim": 4}
    build(tmp_path / "one", llama, corpus, gradient=gradient, shard_size=1000)
    build(tmp_path / "many", llama, corpus, gradient=gradient, shard_size=3, model={"token_budget": 60})
    one = score(tmp_path / "one", queries, tmp_path / "out1")
    many = score(tmp_path / "many", queries, tmp_path / "out2")
    np.testing.assert_allclose(many, one, atol=SCORE_TOLERANCE)


def test_a_float16_store_changes_scores_by_less_than_a_hundredth(llama, corpus, queries, tmp_path):
    gradient = {"projection_dim": 4}
    scores = []
    for dtype in ("float32", "float16"):
        build(tmp_path / dtype, llama, corpus, gradient=gradient, store_as=dtype)
        scores.append(score(tmp_path / dtype, queries, tmp_path / f"out-{dtype}", mixing_weight=0.9))
    assert not np.array_equal(*scores)  # float16 was used at all
    np.testing.assert_allclose(*scores, atol=1e-2)


def test_an_index_that_was_moved_gives_the_same_scores(indexed, queries, tmp_path):
    before = score(indexed(), queries, tmp_path / "out")
    (tmp_path / "index").rename(tmp_path / "moved to éa place")
    after = score(tmp_path / "moved to éa place", queries, tmp_path / "out2")
    np.testing.assert_array_equal(after, before)
    assert not (tmp_path / "index").exists()


def test_proponents_are_the_highest_scores_and_opponents_the_lowest(indexed, queries, tmp_path):
    everything = score(indexed(), queries, tmp_path / "all")
    config = {"index": str(tmp_path / "index"), "queries": str(queries), "out": str(tmp_path / "top")}
    attribute(AttributeConfig.model_validate({**config, "score": {"top_k": 3}}))
    frame = pl.read_parquet(tmp_path / "top" / "proponents.parquet")
    lines = [json.loads(line) for line in (tmp_path / "top" / "proponents.jsonl").read_text().splitlines()]
    for column, line in enumerate(lines):
        order = np.argsort(-everything[:, column], kind="stable")
        assert line["proponent_ids"] == [f"d{n}" for n in order[:3]]
        assert line["proponents"] == [TEXTS[n] for n in order[:3]]
        assert line["opponent_ids"] == [f"d{n}" for n in order[:-4:-1]]
        of_query = frame.filter(pl.col("query_id") == line["example_id"])
        assert of_query["rank"].to_list() == [1, 2, 3, 1, 2, 3]
        np.testing.assert_allclose(of_query["score"], everything[[*order[:3], *order[:-4:-1]], column], atol=1e-12)
