import numpy as np
import pytest
from upath import UPath

from tests.reference import influence
from tests.scoring.test_score_pass import CONFIG, DIMS, NUM_QUERIES, SHARD_ROWS, write_store
from trackstar.storage.layout import EVIDENCE_SCORES, HISTOGRAM
from trackstar.storage.tables import read_table
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.numerics.scores import SCORE_ROUNDING
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.histogram import NUM_BINS, HistogramRequest, count_scores
from trackstar.tasks.scoring.score_pass import ScoreRequest, rank_candidates
from trackstar.tasks.scoring.whitening import FactorRequest, TrainNormsRequest, write_factors, write_train_norms

pytestmark = pytest.mark.numerical

EVIDENCE = {"q0": ("d3", "d20"), "q2": ("d3", "no such document")}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The scores of the definition [n q], the histogram and the evidence of five shards, one of them empty."""
    rng = np.random.default_rng(0)
    counts = (sum(SHARD_ROWS), NUM_QUERIES)
    gradients = [{name: rng.normal(size=(n, d)).astype(np.float32) for name, d in DIMS.items()} for n in counts]
    index = UPath(tmp_path_factory.mktemp("index"))
    shards, queries = write_store(index, gradients)
    common = {"index": str(index), "shards": shards}
    R = build(write_autocorrelation.body, AutocorrelationRequest(**common))
    factors = build(
        write_factors.body, FactorRequest(index=str(index), autocorrelation=R, damping=CONFIG.damping, dask="local")
    )
    norms = build(write_train_norms.body, TrainNormsRequest(factors=factors, **common))
    ranking = build(
        rank_candidates.body,
        ScoreRequest(
            method="trackstar",
            config=CONFIG,
            queries=queries,
            train_norms=norms,
            factors=factors,
            spectrum=None,
            **common,
        ),
    )
    request = HistogramRequest(queries=queries, ranking=ranking, config=CONFIG, evidence=EVIDENCE, **common)
    directory = build(count_scores.body, request).path(str(index))
    scores = influence(*(part.values() for part in gradients), mixing_weight=0.9, damping=CONFIG.damping)
    return scores, read_table(directory, HISTOGRAM), read_table(directory, EVIDENCE_SCORES)


def test_every_score_of_every_shard_is_counted_between_the_lowest_and_the_highest(counted):
    scores, histogram, _ = counted
    for query, row in enumerate(histogram.iter_rows(named=True)):
        column = scores[:, query]
        np.testing.assert_allclose([row["low"], row["high"]], [column.min(), column.max()], atol=SCORE_ROUNDING)
        expected, edges = np.histogram(column, bins=NUM_BINS, range=(row["low"], row["high"]))
        num_on_edges = np.sum(np.abs(column[:, None] - edges) < SCORE_ROUNDING)  # may fall on either side
        assert sum(row["counts"]) == len(column)
        assert np.abs(np.subtract(row["counts"], expected)).sum() <= 2 * num_on_edges


def test_evidence_has_its_score_however_low_and_an_unknown_document_has_none(counted):
    scores, _, evidence = counted
    found = {(query, candidate): score for query, candidate, score in evidence.iter_rows()}
    assert set(found) == {("q0", "d3"), ("q0", "d20"), ("q2", "d3")}
    for (query, candidate), score in found.items():
        assert score == pytest.approx(scores[int(candidate[1:]), int(query[1:])], abs=SCORE_ROUNDING)
