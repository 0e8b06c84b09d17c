"""Soft thresholds of scores against the formula, a score at a time."""

import statistics

import numpy as np
import pytest

from trackstar.tasks.numerics.shrinkage import soft_threshold, spread


def naive(scores, z):
    """Shrunk scores of one query, from the formula."""
    median = statistics.median(scores)
    sigma = 1.4826 * statistics.median(abs(score - median) for score in scores)
    return [np.sign(score - median) * max(abs(score - median) - z * sigma, 0.0) for score in scores]


@pytest.mark.parametrize("z", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_documents", [1, 2, 20, 21])
def test_shrunk_scores_are_those_of_the_formula(z, num_documents):
    scores = np.random.default_rng(0).standard_t(2, size=(2, num_documents, 3))
    found = spread(scores.transpose(0, 2, 1).copy(), z=z)
    shrunk = soft_threshold(scores, found, z=z)
    for weight in range(2):
        for query in range(3):
            expected = naive(scores[weight, :, query].tolist(), z)
            np.testing.assert_allclose(shrunk[weight, :, query], expected, atol=1e-12)
            assert found.stands_out[weight, query] == np.count_nonzero(expected)


def test_whatever_differs_stands_out_where_most_scores_are_one_and_the_same():
    scores = np.array([0.5, 0.5, 0.5, 0.7, 0.2])[None, :, None]
    found = spread(scores.transpose(0, 2, 1).copy(), z=2.0)
    assert found.deviation.item() == 0
    np.testing.assert_allclose(soft_threshold(scores, found, z=2.0).ravel(), [0, 0, 0, 0.2, -0.3], atol=1e-12)
    assert found.stands_out.item() == 2
