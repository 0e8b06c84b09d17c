import numpy as np
import pytest

from tests.reference import influence
from trackstar.tasks.numerics.whole_scores import Products, inner_products, whole_influences

DIMS = (300, 40)


@pytest.fixture
def gradients():
    """Per block, of 7 candidates and 5 queries, two of which are one and the same."""
    rng = np.random.default_rng(0)
    blocks = [(rng.normal(size=(7, dims)), rng.normal(size=(5, dims))) for dims in DIMS]
    for _, queries in blocks:
        queries[4] = queries[0]
    return blocks


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("mixing_weight", [0.0, 0.5, 0.97])
def test_scores_from_inner_products_are_those_of_the_definition(gradients, mixing_weight, unit_norm):
    blocks = [
        Products(inner_products(queries, queries), inner_products(rows, queries), (rows**2).sum(axis=1))
        for rows, queries in gradients
    ]
    squares = [block.norms.mean() / dims for block, dims in zip(blocks, DIMS, strict=True)]
    found = whole_influences(blocks, squares, mixing_weights=[mixing_weight, 0.3], unit_norm=unit_norm)
    for weight, scores in zip((mixing_weight, 0.3), found, strict=True):
        expected = influence(*zip(*gradients, strict=True), mixing_weight=weight, unit_norm=unit_norm, is_flat=True)
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


def test_inner_products_of_many_columns_are_summed_in_float64(monkeypatch):
    monkeypatch.setattr("trackstar.tasks.numerics.whole_scores.COLUMNS_AT_ONCE", 7)
    rows, others = (np.random.default_rng(n).normal(size=(3, 100)).astype(np.float32) for n in (0, 1))
    expected = rows.astype(np.float64) @ others.astype(np.float64).T
    np.testing.assert_allclose(inner_products(rows, others), expected, rtol=1e-12)
