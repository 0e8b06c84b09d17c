import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics.histogram import bin_counts, share_below, upper_edge


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 7))
@settings(deadline=None)
def test_counts_are_those_of_numpy_and_add_up_over_any_cut(seed, num_candidates, num_bins):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_candidates, 3))
    low, high = scores.min(axis=0), scores.max(axis=0)
    counts = bin_counts(scores, low, high, num_bins=num_bins)
    if num_candidates > 1:
        for query in range(3):
            expected, _ = np.histogram(scores[:, query], bins=num_bins, range=(low[query], high[query]))
            np.testing.assert_array_equal(counts[query], expected)
    cut = rng.integers(num_candidates + 1)
    parts = [bin_counts(part, low, high, num_bins=num_bins) for part in (scores[:cut], scores[cut:])]
    np.testing.assert_array_equal(sum(parts), counts)
    np.testing.assert_array_equal(counts.sum(axis=1), num_candidates)


def test_scores_that_are_all_the_same_and_those_beyond_an_end_are_counted():
    ends = np.array([1.0]), np.array([1.0])
    assert bin_counts(np.ones((5, 1)), *ends, num_bins=3).tolist() == [[5, 0, 0]]
    beyond = bin_counts(np.array([[-1e-9], [1 + 1e-9]]), np.array([0.0]), np.array([1.0]), num_bins=2)
    assert beyond.tolist() == [[1, 1]]


@given(st.integers(0, 2**32), st.integers(1, 200))
@settings(deadline=None)
def test_what_is_said_of_a_distribution_holds_for_its_scores(seed, num_candidates):
    scores = np.random.default_rng(seed).normal(size=num_candidates)
    low, high = scores.min(), scores.max()
    counts = bin_counts(scores[:, None], scores[[scores.argmin()]], scores[[scores.argmax()]], num_bins=9)[0].tolist()
    for score in scores[:5]:
        assert share_below(counts, score, low=low, high=high) <= (scores < score).mean()
    edge = upper_edge(counts, 0.9, low=low, high=high)
    assert (scores <= edge + 1e-12).mean() >= 0.9  # the edge itself is rounded
