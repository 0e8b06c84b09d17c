import polars as pl
import pytest

from trackstar.storage.layout import location
from trackstar.storage.queries import Query
from trackstar.storage.results import RESULT_SCHEMA, write_proponents, write_run
from trackstar.tasks.numerics.rank_overlap import rank_biased_overlap
from trackstar.tasks.reindex.checkpoints import Asked, write_asked
from trackstar.tasks.reindex.drift import drift_markdown, measure_drift, render_drift
from trackstar.tasks.scoring.score_pass import ScoreConfig

HOSTILE = "<script>alert(1)</script>"
KEPT = Query(id="q", prompt=HOSTILE, completion=" yes")
REWORDED = Query(id="r", prompt="once", completion=" then")


def results(directory, step, ranking, *, loss, queries=(KEPT, REWORDED), mixing_weight=0.5):
    """A result directory where every query has one ranking: ids and scores, best first."""
    rows = [
        (query.id, "trackstar", kind, rank, id, score)
        for query in queries
        for kind in ("proponent", "opponent")
        for rank, (id, score) in enumerate(ranking.items(), start=1)
    ]
    frame = pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")
    files = write_proponents(directory, frame, queries=queries, texts=dict.fromkeys(ranking, "text"), query_set="s")
    said = {query.id: {"loss": loss, "probability": 0.25, "answer": HOSTILE} for query in queries}
    write_run(directory, {"methods": {"trackstar": {"mixing_weight": mixing_weight}}, "queries": said}, files=files)
    asked = Asked(checkpoints="run", name=directory.name, step=step, digest="0", queries=queries, score=ScoreConfig())
    write_asked(directory, asked)
    return asked


@pytest.fixture
def drift(tmp_path):
    before, after = location(tmp_path / "step-1"), location(tmp_path / "step-2")
    results(before, 1, {"a": 0.9, "b": 0.5, "c": 0.1}, loss=2.0)
    reworded = REWORDED.model_copy(update={"prompt": "twice"})
    now = {"b": 0.8, "a": 0.6, "d": 0.2}
    return measure_drift(before, after, results(after, 2, now, loss=1.5, queries=(KEPT, reworded), mixing_weight=0.25))


def test_drift_says_what_entered_what_left_and_how_scores_loss_and_lambda_moved(drift):
    (query,) = drift.queries
    assert (query.entered, query.left) == (("d",), ("c",))
    assert query.overlap == rank_biased_overlap("abc", "bad")
    assert {id: (change.before, change.after) for id, change in query.scores.items()} == {
        "b": (0.5, 0.8),
        "a": (0.9, 0.6),
    }
    assert (query.loss.before, query.loss.after) == (2.0, 1.5)
    assert (drift.mixing_weight.before, drift.mixing_weight.after) == (0.5, 0.25)
    assert (drift.previous, drift.checkpoint) == ("step-1", "step-2")


def test_a_query_that_was_worded_otherwise_is_not_compared_and_said_so(drift):
    assert [moved.query.id for moved in drift.queries] == ["q"]
    assert drift.not_compared == ("r",)


def test_no_text_of_a_query_or_a_model_becomes_markup(drift):
    assert "<script" not in render_drift(drift)
    assert "<script" not in drift_markdown(drift)
    assert "&lt;script&gt;" in render_drift(drift)
