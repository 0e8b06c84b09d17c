import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics.metrics import bootstrap_interval, hit_at_k, precision_at_k, recall_at_k, reciprocal_rank

IDS = st.lists(st.sampled_from("abcdefghijklmnop"), unique=True)
EVIDENCE = st.frozensets(st.sampled_from("abcdefghijklmnop"), min_size=1)


def test_a_worked_example():
    ranked, relevant = list("vwxyz"), frozenset("xzq")
    assert reciprocal_rank(ranked, relevant) == 1 / 3
    assert hit_at_k(ranked, relevant, k=2) == 0.0
    assert hit_at_k(ranked, relevant, k=3) == 1.0
    assert recall_at_k(ranked, relevant, k=5) == 2 / 3
    assert precision_at_k(ranked, relevant, k=5) == 2 / 5


@given(ranked=IDS, relevant=EVIDENCE, k=st.integers(1, 20))
@settings(deadline=None)
def test_metrics_agree_with_counting_position_by_position(ranked, relevant, k):
    found = [rank for rank, name in enumerate(ranked, start=1) if name in relevant]
    within = [rank for rank in found if rank <= k]
    assert reciprocal_rank(ranked, relevant) == (1 / min(found) if found else 0)
    assert hit_at_k(ranked, relevant, k=k) == (1 if within else 0)
    assert recall_at_k(ranked, relevant, k=k) == len(within) / len(relevant)
    assert precision_at_k(ranked, relevant, k=k) == len(within) / k


def test_a_short_ranking_does_not_gain_precision():
    assert precision_at_k(["a"], {"a"}, k=10) == 0.1


@pytest.mark.parametrize("metric", [reciprocal_rank, lambda ranked, relevant: hit_at_k(ranked, relevant, k=1)])
def test_a_query_without_evidence_has_no_metric(metric):
    with pytest.raises(ValueError, match="without relevant ids"):
        metric(["a"], frozenset())


def test_the_interval_is_that_of_resampling_one_query_at_a_time():
    values = np.random.default_rng(1).exponential(size=40)
    draw = np.random.default_rng(2)
    naive = sorted(float(np.mean([values[draw.integers(40)] for _ in range(40)])) for _ in range(4000))
    low, high = bootstrap_interval(values, generator=np.random.default_rng(3))
    # Two independent bootstraps: their quantiles differ by about 2 sd / sqrt(4000 * 0.025) of a mean with sd ~ 0.16.
    assert low == pytest.approx(naive[100], abs=0.04)
    assert high == pytest.approx(naive[3900], abs=0.04)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(4)
    trials = [draw.normal(size=50) for _ in range(200)]
    intervals = [bootstrap_interval(values, generator=draw, num_resamples=1000) for values in trials]
    coverage = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.88 <= coverage <= 0.99  # 0.95 less a small-sample deficit of about 0.01; 200 trials have sd 0.016


def test_the_same_seed_gives_the_same_interval_and_pairing_removes_what_methods_share():
    hardness = np.random.default_rng(5).normal(size=100)
    worse, better = hardness, hardness + 0.1
    first = bootstrap_interval(better - worse, generator=np.random.default_rng(0))
    assert first == bootstrap_interval(better - worse, generator=np.random.default_rng(0))
    assert first == pytest.approx((0.1, 0.1))
    low, high = bootstrap_interval(better, generator=np.random.default_rng(0))
    assert high - low > 0.2


def test_a_bootstrap_of_many_values_draws_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("trackstar.tasks.numerics.metrics.RESAMPLES_AT_ONCE", 64)
    values = np.random.default_rng(6).normal(size=30)
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0), num_resamples=501)
    assert low < values.mean() < high


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_nothing_and_nan_have_no_interval(values):
    with pytest.raises(ValueError, match="at least one value and finite ones"):
        bootstrap_interval(np.array(values, dtype=float), generator=np.random.default_rng(0))
