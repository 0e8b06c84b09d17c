"""The low-rank score pass against the dense definition, for every mixing weight, damping and switch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from trackstar.tasks.numerics import curvature, scores

# float64 on both sides; the oracle's eigendecomposition loses about cond(R) · 1e-16
TOLERANCE = 1e-7


def _random_blocks(rng, *, num_train, num_queries, dims):
    mixing = [rng.normal(size=(d, d)) / np.sqrt(d) for d in dims]
    train = [rng.normal(size=(num_train, len(m))) @ m for m in mixing]
    queries = [rng.normal(size=(num_queries, len(m))) @ m + 0.3 for m in mixing]
    return train, queries


def _fast(train, queries, *, mixing_weight, damping, whitening="mixed", unit_norm=True):
    factors = [
        None if whitening == "none" else curvature.damped_factor(curvature.gram(t) / len(t), damping=damping)
        for t in train
    ]
    bases = [scores.query_basis(C, q) for C, q in zip(factors, queries, strict=True)]
    norms = np.stack(
        [
            curvature.squared_norms(t if C is None else curvature.whiten(C, t))
            for C, t in zip(factors, train, strict=True)
        ],
        axis=1,
    )
    coordinates = [t @ basis.readout for t, basis in zip(train, bases, strict=True)]
    weight = mixing_weight if whitening == "mixed" else 0.0
    return scores.influence(coordinates, norms, bases, mixing_weight=weight, unit_norm=unit_norm)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    mixing_weight=st.floats(0, 0.999),
    damping=st.floats(1e-3, 10),
    num_queries=st.integers(1, 12),
    whitening=st.sampled_from(["mixed", "train", "none"]),
    unit_norm=st.booleans(),
)
def test_low_rank_scores_equal_the_dense_definition(seed, mixing_weight, damping, num_queries, whitening, unit_norm):
    rng = np.random.default_rng(seed)
    # fewer examples than dimensions in one block, more queries than dimensions in another
    train, queries = _random_blocks(rng, num_train=20, num_queries=num_queries, dims=[30, 6, 12])
    settings_ = {"mixing_weight": mixing_weight, "damping": damping, "whitening": whitening, "unit_norm": unit_norm}
    expected = reference.influence(train, queries, **settings_)
    got = _fast(train, queries, **settings_)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    mixing_weight=st.floats(0, 0.999),
    num_queries=st.integers(1, 12),
    whitening=st.sampled_from(["mixed", "train"]),
    unit_norm=st.booleans(),
)
def test_scores_with_a_flat_R_train_equal_the_dense_definition(seed, mixing_weight, num_queries, whitening, unit_norm):
    rng = np.random.default_rng(seed)
    train, queries = _random_blocks(rng, num_train=20, num_queries=num_queries, dims=[30, 6])
    train[0] *= 100  # blocks of different sizes, which s evens out
    s = [float(np.square(t).mean()) for t in train]
    bases = [scores.query_basis(value**0.5, q) for value, q in zip(s, queries, strict=True)]
    norms = np.stack([curvature.squared_norms(t) / value for t, value in zip(train, s, strict=True)], axis=1)
    coordinates = [t @ basis.readout for t, basis in zip(train, bases, strict=True)]
    weight = mixing_weight if whitening == "mixed" else 0.0
    got = scores.influence(coordinates, norms, bases, mixing_weight=weight, unit_norm=unit_norm)
    settings_ = {"mixing_weight": mixing_weight, "whitening": whitening, "unit_norm": unit_norm, "is_flat": True}
    expected = reference.influence(train, queries, **settings_)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())


def test_candidate_equal_to_the_only_query_scores_one_even_near_mixing_weight_one():
    rng = np.random.default_rng(0)
    train, _ = _random_blocks(rng, num_train=50, num_queries=1, dims=[40])
    queries = [train[0][:1]]
    got = _fast(train, queries, mixing_weight=0.99, damping=0.1)
    assert got[0, 0] == pytest.approx(1.0, abs=1e-9)  # cancellation of ‖ψ‖² − ‖t‖² would show here


def test_repeating_a_query_changes_no_score():
    rng = np.random.default_rng(1)
    train, queries = _random_blocks(rng, num_train=30, num_queries=3, dims=[16, 8])
    once = _fast(train, queries, mixing_weight=0.9, damping=0.1)
    twice = _fast(train, [np.concatenate([q, q]) for q in queries], mixing_weight=0.9, damping=0.1)
    np.testing.assert_allclose(twice[:, :3], once, atol=1e-9)
    np.testing.assert_allclose(twice[:, 3:], once, atol=1e-9)


def test_rescaling_all_gradients_changes_no_score():
    rng = np.random.default_rng(2)
    train, queries = _random_blocks(rng, num_train=30, num_queries=3, dims=[16, 8])
    plain = _fast(train, queries, mixing_weight=0.9, damping=0.5)
    scaled = _fast([1e-6 * t for t in train], [1e-6 * q for q in queries], mixing_weight=0.9, damping=0.5)
    np.testing.assert_allclose(scaled, plain, atol=1e-9)


def test_mixing_weight_of_one_is_refused():
    rng = np.random.default_rng(3)
    train, queries = _random_blocks(rng, num_train=10, num_queries=2, dims=[4])
    with pytest.raises(ValueError, match="less than 1"):
        _fast(train, queries, mixing_weight=1.0, damping=0.1)


def _by_readout(train, queries, *, mixing_weights, damping):
    """Scores [l n q] as the pass over a float32 store computes them, and how many rows were float64."""
    factors = [curvature.damped_factor(curvature.gram(t) / len(t), damping=damping) for t in train]
    bases = [scores.query_basis(C, q) for C, q in zip(factors, queries, strict=True)]
    norms = [curvature.squared_norms(curvature.whiten(C, t)) for C, t in zip(factors, train, strict=True)]
    coordinates = [
        scores.Readout(basis)(t, train_norms=psi, norms=curvature.squared_norms(t))
        for basis, t, psi in zip(bases, train, norms, strict=True)
    ]
    exact = sum(
        int((np.abs(c - t.astype(np.float64) @ b.readout) < 1e-12).all(axis=1).sum())  # float32 leaves 1e-7
        for c, t, b in zip(coordinates, train, bases, strict=True)
    )
    stacked = np.stack(norms, axis=1)
    return scores.influences(coordinates, stacked, bases, mixing_weights=mixing_weights, unit_norm=True), exact


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    damping=st.sampled_from([1e-8, 1e-4, 0.1, 10.0]),
    num_queries=st.integers(1, 12),
)
def test_float32_products_move_no_score_by_more_than_they_may_at_any_mixing_weight(seed, damping, num_queries):
    rng = np.random.default_rng(seed)
    train, queries = _random_blocks(rng, num_train=40, num_queries=num_queries, dims=[30, 24])
    train, queries = ([block.astype(np.float32) for block in blocks] for blocks in (train, queries))
    queries[0][0], queries[1][0] = train[0][0], train[1][0]  # a candidate in the span of the queries
    weights = [0.0, 0.5, 0.9, 0.999]
    found, _ = _by_readout(train, queries, mixing_weights=weights, damping=damping)
    for weight, got in zip(weights, found, strict=True):
        expected = reference.influence(train, queries, mixing_weight=weight, damping=damping)
        np.testing.assert_allclose(got, expected, atol=scores.SCORE_ROUNDING)


def test_rows_are_float64_only_where_it_shows():
    rng = np.random.default_rng(1)
    train = [rng.normal(size=(300, 256)).astype(np.float32)]
    queries = [np.concatenate([train[0][:1], rng.normal(size=(3, 256)).astype(np.float32)])]
    _, exact = _by_readout(train, queries, mixing_weights=[0.9], damping=0.1)
    assert exact == 1  # the candidate that is a query
