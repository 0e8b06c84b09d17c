import random

import pytest

from trackstar.tasks.numerics.rank_overlap import rank_biased_overlap


def naive(S, T, p):
    """Equation 30 of Webber et al., each X_d counted from nothing."""
    k = min(len(S), len(T))
    X = {d: len(set(S[:d]) & set(T[:d])) for d in range(1, k + 1)}
    return X[k] / k * p**k + (1 - p) / p * sum(X[d] / d * p**d for d in X)


@pytest.mark.parametrize("seed", range(20))
def test_overlap_is_equation_30(seed):
    generator = random.Random(seed)
    S, T = (generator.sample(range(40), generator.randint(1, 30)) for _ in range(2))
    p = generator.uniform(0.1, 0.98)
    assert rank_biased_overlap(S, T, p=p) == pytest.approx(naive(S, T, p), abs=1e-12)  # sums of some 30 terms below 1


def test_equal_rankings_overlap_wholly_and_disjoint_ones_not_at_all():
    assert rank_biased_overlap("abcde", "abcde") == pytest.approx(1, abs=1e-12)
    assert rank_biased_overlap("abc", "xyz") == 0


def test_a_change_at_the_top_weighs_more_than_one_at_the_bottom():
    assert rank_biased_overlap("abcd", "bacd") < rank_biased_overlap("abcd", "abdc")


def test_overlap_is_symmetric():
    assert rank_biased_overlap("abcde", "eabxy") == rank_biased_overlap("eabxy", "abcde")


@pytest.mark.parametrize(("S", "p", "named"), [("", 0.9, "at least one"), ("aa", 0.9, "none twice"), ("a", 1.0, "1.0")])
def test_what_is_no_ranking_is_refused(S, p, named):
    with pytest.raises(ValueError, match=named):
        rank_biased_overlap(S, "ab", p=p)
