"""Shrunk scores against the dense definition, in a ranking, in sums over groups and in passes over few queries."""

import numpy as np
import polars as pl
import pytest
from upath import UPath

from tests.numerics.test_shrinkage import naive
from tests.reference import influence
from tests.scoring.test_score_pass import CONFIG, NUM_QUERIES, gradients, rank_request
from trackstar.storage.layout import RANKING
from trackstar.storage.tables import read_table
from trackstar.tasks.numerics.scores import SCORE_ROUNDING
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.grouped import candidate_scores
from trackstar.tasks.scoring.score_pass import rank_candidates
from trackstar.tasks.scoring.shrink import ShrinkRequest, shrink_ranking

__all__ = ["gradients"]
Z = 1.5


@pytest.fixture
def scored(gradients, tmp_path):
    config = CONFIG.model_copy(update={"top_k": 0, "shrink": Z, "mixing_weights": (0.5,)})
    return rank_request(UPath(tmp_path), gradients, config=config)


def expected(gradients, mixing_weight):
    """Shrunk scores [n q] of all documents."""
    scores = influence(*(part.values() for part in gradients), mixing_weight=mixing_weight, damping=CONFIG.damping)
    return np.array([naive(column.tolist(), Z) for column in scores.T]).T


def test_a_shrunk_ranking_keeps_its_order_and_says_how_many_stand_out(gradients, scored, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.scoring.shrink.BYTES_AT_ONCE", 1)  # a query a pass
    ranking = build(rank_candidates.body, scored)
    artifact = build(shrink_ranking.body, ShrinkRequest(index=scored.index, scored=scored, ranking=ranking))
    before, after = (read_table(of.path(scored.index), RANKING) for of in (ranking, artifact))
    assert after.drop("score").equals(before.drop("score"))
    for method, weight in (("trackstar", 0.9), ("trackstar@0.5", 0.5)):
        dense = expected(gradients, weight)
        for query in range(NUM_QUERIES):
            found = after.filter((pl.col("method") == method) & (pl.col("query_id") == f"q{query}"))
            positions = [int(candidate_id[1:]) for candidate_id in found["candidate_id"]]
            np.testing.assert_allclose(found["score"], dense[positions, query], atol=3 * SCORE_ROUNDING)
    counts = np.count_nonzero(expected(gradients, 0.9), axis=0)
    assert artifact.facts["stands_out"] == {f"q{query}": count for query, count in enumerate(counts.tolist())}
    assert counts.min() > 0
    assert counts.max() < len(dense)


def test_scores_of_chosen_documents_are_shrunk_by_all_documents(gradients, scored):
    ids = ["d20", "d3"]
    found = candidate_scores(scored, ids).filter(pl.col("method") == "trackstar")
    dense = expected(gradients, 0.9)
    values = np.array(found["score"]).reshape(NUM_QUERIES, len(ids))
    np.testing.assert_allclose(values, dense[[20, 3]].T, atol=3 * SCORE_ROUNDING)


def test_another_threshold_makes_no_new_ranking(scored):
    other = scored.model_copy(update={"config": scored.config.model_copy(update={"shrink": 2.0})})
    assert other.identity() == scored.identity()
