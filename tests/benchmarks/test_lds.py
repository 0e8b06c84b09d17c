import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.retraining.lds import (
    linear_datamodelling_scores,
    noise_ceiling,
    odd_share,
    seed_agreement,
    spearman,
)


def halves(rng, num_subsets, num_documents):
    return rng.random((num_subsets, num_documents)) < 0.5


def test_scores_are_scipys_spearman_of_each_subsets_sum():
    rng = np.random.default_rng(0)
    subsets, scores, outputs = halves(rng, 30, 12), rng.normal(size=(12, 4)), rng.normal(size=(30, 4))
    found = linear_datamodelling_scores(scores, subsets, outputs)
    for query in range(4):
        sums = [sum(scores[member, query] for member in np.flatnonzero(subset)) for subset in subsets]
        assert found[query] == pytest.approx(spearmanr(sums, outputs[:, query])[0])


def test_a_perfect_predictor_scores_one_and_its_negative_minus_one():
    rng = np.random.default_rng(1)
    subsets, scores = halves(rng, 25, 10), rng.normal(size=(10, 3))
    outputs = np.exp(subsets @ scores)  # any increasing function of the sums
    np.testing.assert_allclose(linear_datamodelling_scores(scores, subsets, outputs), 1.0)
    np.testing.assert_allclose(linear_datamodelling_scores(-scores, subsets, outputs), -1.0)


def test_ties_share_their_mean_rank():
    x, y = np.array([[1.0], [1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [2.0], [0.0]])
    assert spearman(x, y)[0] == pytest.approx(spearmanr(x[:, 0], y[:, 0])[0])


def test_a_constant_column_has_no_order():
    with pytest.raises(ValueError, match="column 1 is the same in all 3 rows"):
        spearman(np.arange(6.0).reshape(3, 2), np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]))


@pytest.mark.parametrize("num_seeds", [1, 2, 5])
def test_the_ceiling_is_what_the_true_function_reaches(num_seeds):
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(4000, 1))
    outputs = truth + rng.normal(size=(num_seeds + 2, 4000, 1))  # as much noise as signal
    agreement = seed_agreement(outputs)[0]
    reached = spearman(truth, outputs[:num_seeds].mean(axis=0))[0]
    # Rank correlations of 4,000 normal draws are within 0.02 of the Pearson relation that the formula states.
    assert noise_ceiling(agreement, num_seeds=num_seeds) == pytest.approx(reached, abs=0.03)


def test_agreement_is_the_mean_over_pairs_of_seeds():
    outputs = np.random.default_rng(3).normal(size=(3, 20, 2))
    pairs = [(0, 1), (0, 2), (1, 2)]
    for query in range(2):
        expected = np.mean([spearmanr(outputs[a, :, query], outputs[b, :, query])[0] for a, b in pairs])
        assert seed_agreement(outputs)[query] == pytest.approx(expected)


@pytest.mark.parametrize("pairwise", [0.0, 0.5, 1.0])
def test_the_odd_share_is_that_of_the_sum_in_a_function_of_sums_and_of_pairs(pairwise):
    rng = np.random.default_rng(4)
    signs = np.where(halves(rng, 4000, 12), 1.0, -1.0)
    linear, pairs = rng.normal(size=(12, 3)), np.triu(rng.normal(size=(3, 12, 12)), k=1)
    parts = [(1 - pairwise) * sign * (signs @ linear) for sign in (1, -1)]
    even = pairwise * np.einsum("si,qij,sj->sq", signs, pairs, signs)
    seen = [part + even + rng.normal(size=(3, 4000, 3)) for part in parts]  # by three seeds
    odd_variance, even_variance = parts[0].var(axis=0).sum(), even.var(axis=0).sum()
    # Sampling: 4,000 subsets, noise averaged over six pairs of seeds.
    assert odd_share(*seen) == pytest.approx(odd_variance / (odd_variance + even_variance), abs=0.02)


def test_one_seed_has_no_agreement():
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        seed_agreement(np.zeros((1, 4, 2)))
