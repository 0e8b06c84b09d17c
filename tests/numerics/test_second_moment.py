"""Second moments against their definition, element by element in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics.second_moment import (
    FactoredSecondMoment,
    FullSecondMoment,
    accumulate_estimate,
    dense,
    estimate,
    factor,
    folded_scales,
    inverse_root,
    transpose,
)

EPSILON = 1e-8


def random_second_moment(m: int, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Squares over eight decades, as in a real optimizer."""
    generator = torch.Generator().manual_seed(seed)
    return (10 ** (8 * torch.rand(m, n, generator=generator, dtype=torch.float64) - 12)).to(dtype)


def random_factored(m: int, n: int, *, seed: int = 0) -> FactoredSecondMoment:
    return factor(FullSecondMoment(random_second_moment(m, n, seed=seed)))


def test_factors_are_the_row_and_column_means():
    V = random_second_moment(5, 7)
    factored = factor(FullSecondMoment(V))
    torch.testing.assert_close(factored.row, V.sum(1) / 7)
    torch.testing.assert_close(factored.column, V.sum(0) / 5)


def test_factors_of_a_rank_one_second_moment_give_it_back():
    V = torch.outer(random_second_moment(1, 5)[0], random_second_moment(1, 7, seed=1)[0])
    torch.testing.assert_close(dense(factor(FullSecondMoment(V))), V, rtol=1e-12, atol=0)


def test_factors_keep_the_row_and_column_means():
    V = random_second_moment(5, 7)
    approximate = dense(factor(FullSecondMoment(V)))
    torch.testing.assert_close(approximate.mean(1), V.mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(approximate.mean(0), V.mean(0), rtol=1e-12, atol=0)


def test_dense_agrees_with_adafactors_own_formula():
    factored = random_factored(5, 7)
    expected = factored.row[:, None] @ factored.column[None] / factored.row.mean()
    torch.testing.assert_close(dense(factored), expected, rtol=1e-12, atol=0)


def test_folded_scales_multiply_to_the_inverse_root():
    factored = random_factored(5, 7)
    row_scale, column_scale = folded_scales(factored, epsilon=EPSILON)
    # ε² = 1e-16 of the mean lifts a value eight decades below it by 1e-8
    torch.testing.assert_close(torch.outer(row_scale, column_scale), dense(factored).rsqrt(), rtol=1e-7, atol=0)


def test_folding_into_the_projection_equals_dividing_the_gradient():
    factored = random_factored(5, 7)
    row_scale, column_scale = folded_scales(factored, epsilon=0.1)
    generator = torch.Generator().manual_seed(3)
    G, L, R = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 7), (3, 5), (4, 7)))
    floored = FactoredSecondMoment(
        factored.row + 0.01 * factored.row.mean(), factored.column + 0.01 * factored.column.mean()
    )
    expected = L @ (G / dense(floored).sqrt()) @ R.T
    torch.testing.assert_close((L * row_scale) @ G @ (R * column_scale).T, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_inverse_root_is_its_definition(dtype, rtol):
    V = random_second_moment(5, 7, dtype=dtype)
    expected = (V.double() + 0.01 * V.double().mean()).rsqrt()
    result = inverse_root(FullSecondMoment(V), epsilon=0.1)
    assert result.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=0)  # rtol: a few roundings of the dtype


def test_inverse_root_survives_where_the_floor_itself_underflows():
    V = random_second_moment(5, 7, dtype=torch.float32) * 1e-22
    V[0, 0] = 0  # lifted to ε² mean(V), near 1e-44 and below every normal float32
    expected = (V.double() + EPSILON**2 * V.double().mean()).rsqrt()
    torch.testing.assert_close(inverse_root(FullSecondMoment(V), epsilon=EPSILON).double(), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-6, 1e6), epsilon=st.sampled_from([1e-8, 1e-3, 0.5]))
def test_rescaling_every_gradient_rescales_the_corrected_gradient_by_nothing(scale, epsilon):
    V = random_second_moment(4, 6)
    full, scaled = FullSecondMoment(V), FullSecondMoment(V * scale**2)
    torch.testing.assert_close(
        inverse_root(scaled, epsilon=epsilon) * scale, inverse_root(full, epsilon=epsilon), rtol=1e-12, atol=0
    )
    folded = torch.outer(*folded_scales(factor(full), epsilon=epsilon))
    folded_scaled = torch.outer(*folded_scales(factor(scaled), epsilon=epsilon))
    torch.testing.assert_close(folded_scaled * scale, folded, rtol=1e-12, atol=0)


def test_epsilon_means_the_same_in_both_forms_of_a_constant_second_moment():
    full = FullSecondMoment(torch.full((4, 6), 3e-9, dtype=torch.float64))
    folded = torch.outer(*folded_scales(factor(full), epsilon=0.5))
    torch.testing.assert_close(folded, inverse_root(full, epsilon=0.5), rtol=1e-12, atol=0)


def test_transpose_is_exact_even_where_the_factors_have_different_means():
    factored = FactoredSecondMoment(random_second_moment(1, 5)[0], random_second_moment(1, 7, seed=1)[0] * 10)
    torch.testing.assert_close(dense(transpose(factored)), dense(factored).T, rtol=1e-12, atol=0)
    full = FullSecondMoment(random_second_moment(5, 7))
    assert torch.equal(dense(transpose(full)), dense(full).T)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_estimate_equals_the_mean_of_materialised_squared_gradients(dtype, rtol):
    m, n, num_tokens = 6, 9, 12
    generator = torch.Generator().manual_seed(4)
    delta = torch.randn(7, num_tokens, m, generator=generator, dtype=dtype) * 1e-4
    delta[:, -3:] = 0  # padding
    x = torch.randn(7, num_tokens, n, generator=generator, dtype=dtype)
    row_sum, column_sum = torch.zeros(m, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for batch in (slice(0, 4), slice(4, 7)):
        accumulate_estimate(row_sum, column_sum, output_gradients=delta[batch], activations=x[batch])
    V = (delta.double().mT @ x.double()).square().mean(0)
    estimated = estimate(row_sum, column_sum, num_examples=7)
    # float32: a quadratic form over 12 tokens, each product rounded
    torch.testing.assert_close(estimated.row, V.mean(1), rtol=rtol, atol=0)
    torch.testing.assert_close(estimated.column, V.mean(0), rtol=rtol, atol=0)


def test_rounding_never_makes_an_estimate_negative():
    x = torch.ones(1, 64, 3)
    delta = torch.randn(1, 64, 5, generator=torch.Generator().manual_seed(5))
    delta -= delta.mean(1, keepdim=True)  # every gradient is zero but for cancellation
    row_sum, column_sum = torch.zeros(5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    accumulate_estimate(row_sum, column_sum, output_gradients=delta, activations=x)
    assert (row_sum >= 0).all()
    assert (column_sum >= 0).all()
    assert row_sum.max() < 1e-8 * delta.square().sum()


@pytest.mark.parametrize("value", [0.0, -1e-12, float("nan"), float("inf")])
def test_what_no_mean_of_squares_can_be_is_refused(value):
    vector = torch.full((3,), value)
    with pytest.raises(ValueError, match="V ranges from"):
        FullSecondMoment(vector[None])
    with pytest.raises(ValueError, match="row factor"):
        FactoredSecondMoment(vector, torch.ones(2))
    with pytest.raises(ValueError, match="column factor"):
        FactoredSecondMoment(torch.ones(2), vector)


def test_a_zero_without_epsilon_is_refused_with_the_cure():
    V = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="raise epsilon"):
        inverse_root(FullSecondMoment(V), epsilon=0.0)
    with pytest.raises(ValueError, match="raise epsilon"):
        folded_scales(factor(FullSecondMoment(V)), epsilon=0.0)
