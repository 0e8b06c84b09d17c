import numpy as np
import pytest

from trackstar.tasks.numerics import curvature, mixing


def test_whitened_gradients_have_identity_autocorrelation():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))
    R = curvature.gram(phi) / len(phi)
    psi = curvature.whiten(curvature.damped_factor(R, damping=0.0), phi)
    np.testing.assert_allclose(psi.T @ psi / len(psi), np.eye(12), atol=1e-8)


def test_gram_of_float32_rows_equals_the_float64_product():
    phi = np.random.default_rng(1).normal(size=(100, 7)).astype(np.float32)
    expected = phi.astype(np.float64).T @ phi.astype(np.float64)
    np.testing.assert_allclose(curvature.gram(phi), expected, rtol=1e-13, atol=1e-12)


def test_undamped_singular_autocorrelation_is_refused_with_the_cure():
    phi = np.random.default_rng(2).normal(size=(5, 12))
    with pytest.raises(ValueError, match="raise damping"):
        curvature.damped_factor(curvature.gram(phi) / 5, damping=0.0)


def test_zero_autocorrelation_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        curvature.damped_factor(np.zeros((3, 3)), damping=1.0)


def test_spectrum_is_descending_and_sums_to_the_trace():
    phi = np.random.default_rng(3).normal(size=(5, 12))
    R = curvature.gram(phi) / 5
    values = curvature.spectrum(R)
    assert (np.diff(values) <= 0).all()
    assert values.sum() == pytest.approx(np.trace(R))
    assert curvature.mean_eigenvalue(R) == pytest.approx(values.mean())


def test_mixing_weight_makes_the_curves_cross_at_the_scaled_component():
    rng = np.random.default_rng(4)
    train, evaluation = rng.exponential(size=6554), rng.exponential(size=6554)
    weight = mixing.crossing_mixing_weight(train, evaluation, num_dims=6554)
    k = weight.crossing_index - 1
    assert weight.crossing_index == 100
    assert weight.limited_by is None
    assert weight.value * np.sort(evaluation)[::-1][k] == pytest.approx((1 - weight.value) * np.sort(train)[::-1][k])


def test_mixing_weight_of_few_queries_is_taken_at_their_effective_rank_and_says_so():
    train = np.linspace(1, 2, 65_536)
    weight = mixing.crossing_mixing_weight(train, np.array([4.0, 4.0, 4.0, 1e-12]), num_dims=65_536)
    assert (weight.crossing_index, weight.wanted_index, weight.limited_by) == (3, 1000, "R_eval")
    third = np.sort(train)[::-1][2]
    assert weight.value == pytest.approx(third / (4.0 + third))


def test_a_query_that_is_answered_with_certainty_does_not_send_the_mixing_weight_to_one():
    rng = np.random.default_rng(5)
    evaluation = np.concatenate([rng.exponential(size=140), 1e-9 * rng.exponential(size=20)])
    weight = mixing.crossing_mixing_weight(rng.exponential(size=65_536), evaluation, num_dims=65_536)
    assert weight.value < 0.99


def test_effective_rank_of_equal_eigenvalues_is_their_number():
    assert curvature.effective_rank(np.array([3.0, 3.0, 3.0, 0.0])) == 3
    assert curvature.effective_rank(np.zeros(4)) == 0


def test_mixing_weight_of_zero_gradients_is_refused():
    with pytest.raises(ValueError, match="R_eval is zero"):
        mixing.crossing_mixing_weight(np.ones(4), np.zeros(2), num_dims=4)


def test_adding_and_subtracting_rows_in_place_gives_the_lower_triangle_of_the_gram_matrix():
    phi = np.random.default_rng(6).normal(size=(90, 7)).astype(np.float32)
    total = curvature.empty_gram(7)
    for rows, sign in ((phi[:50], 1.0), (phi[50:], 1.0), (phi[10:20], -1.0)):
        total = curvature.add_gram(total, rows, sign=sign)
    kept = np.delete(phi, np.arange(10, 20), axis=0).astype(np.float64)
    np.testing.assert_allclose(total, np.tril(kept.T @ kept), atol=1e-12)


def test_a_spectrum_report_counts_what_damping_decides():
    report = curvature.spectrum_report(np.array([6.0, 2.0, 0.0, 0.0]), damping=0.5)  # δ = 1
    assert (report.num_dims, report.rank, report.condition) == (4, 2, 7.0)
    assert report.effective_dimension == pytest.approx(6 / 7 + 2 / 3)
    assert report.damping_share == pytest.approx(1 - (6 / 7 + 2 / 3) / 4)
    singular = curvature.spectrum_report(np.array([6.0, 2.0, 0.0, 0.0]), damping=0.0)
    assert (singular.effective_dimension, singular.facts()["condition"]) == (2.0, None)
    joint = curvature.joint_report([report, singular])
    assert (joint.num_dims, joint.rank, joint.condition) == (8, 4, np.inf)


def test_the_spectrum_of_R_eval_is_that_of_its_dense_matrix():
    rng = np.random.default_rng(7)
    queries = [rng.normal(size=(3, d)).astype(np.float32) for d in (5, 2)]
    dense = [np.linalg.eigvalsh(q.astype(np.float64).T @ q / 3)[::-1][:3] for q in queries]
    np.testing.assert_allclose(mixing.eval_spectrum(queries), np.concatenate(dense), atol=1e-6)
