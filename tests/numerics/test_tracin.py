import numpy as np
import pytest

from trackstar.tasks.numerics.tracin import gradient_products


@pytest.mark.parametrize("unit_norm", [False, True])
def test_products_are_those_of_the_concatenated_gradients(unit_norm):
    rng = np.random.default_rng(0)
    candidates = [rng.normal(size=(5, dims)).astype(np.float32) for dims in (3, 4)]
    queries = [rng.normal(size=(2, dims)).astype(np.float32) for dims in (3, 4)]
    expected = np.zeros((5, 2))
    for row, g in enumerate(np.concatenate(candidates, axis=1).astype(np.float64)):
        for column, h in enumerate(np.concatenate(queries, axis=1).astype(np.float64)):
            expected[row, column] = g @ h / (np.linalg.norm(g) * np.linalg.norm(h) if unit_norm else 1)
    np.testing.assert_allclose(gradient_products(candidates, queries, unit_norm=unit_norm), expected, rtol=1e-12)
