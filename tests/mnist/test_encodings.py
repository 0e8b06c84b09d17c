import numpy as np
import pytest
import torch

from tests import reference
from trackstar.tasks.mnist.encodings import (
    Scorer,
    corrected,
    directions,
    flattened,
    one_sided_by_parameter,
    two_sided,
    two_sided_projections,
)
from trackstar.tasks.numerics.second_moment import FullSecondMoment

pytestmark = pytest.mark.numerical

EXACT = 1e-9  # float64 on both sides, Cholesky against an eigendecomposition
FLOAT32 = 1e-4  # two products of float32 matrices in another order


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden.weight": (5, 12), "hidden.bias": (5, 1), "output.weight": (4, 5), "output.bias": (4, 1)}
    return {name: torch.randn(7, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(("whitening", "mixing_weight"), [("none", 0.0), ("train", 0.0), ("mixed", 0.4)])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_scores_are_those_of_the_definition(whitening, mixing_weight, unit_norm):
    generator = np.random.default_rng(0)
    candidates, queries = generator.standard_normal((40, 6)), generator.standard_normal((9, 6))
    R = None if whitening == "none" else candidates.T @ candidates / len(candidates)
    scorer = Scorer(queries, [candidates], R=R, damping=0.2)
    [found] = scorer.scores(mixing_weight=mixing_weight, unit_norm=unit_norm)
    expected = reference.influence(
        [candidates], [queries], mixing_weight=mixing_weight, damping=0.2, whitening=whitening, unit_norm=unit_norm
    )
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)


def test_two_sided_vectors_are_the_directions_times_the_raw_gradient(gradients):
    V = {name: FullSecondMoment(G.square().mean(0)) for name, G in gradients.items()}
    P = two_sided_projections(gradients, projection_dim=3, seed=5)
    vectors = two_sided(corrected(gradients, V, epsilon=1e-3), P)
    assert vectors.shape == (7, 2 * 3 * 4)
    rows = flattened(directions(P, V, epsilon=1e-3))
    np.testing.assert_allclose(vectors, flattened(gradients) @ rows.T, rtol=FLOAT32, atol=FLOAT32)


def test_projections_depend_on_the_seed_and_keep_a_bias_whole_on_the_right(gradients):
    first, again, other = (two_sided_projections(gradients, projection_dim=3, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name].left, again[name].left) for name in first)
    assert not torch.equal(first["hidden.bias"].left, other["hidden.bias"].left)
    assert first["hidden.bias"].right.tolist() == [[1.0]]


def test_the_control_gives_every_parameter_as_many_numbers_as_two_sided_does(gradients):
    P = two_sided_projections(gradients, projection_dim=3, seed=0)
    only_bias = {name: G * (name == "output.bias") for name, G in gradients.items()}
    vectors, bias_vectors = one_sided_by_parameter([gradients, only_bias], P, seed=0)
    assert vectors.shape == (7, 24)
    assert np.flatnonzero(np.abs(bias_vectors).sum(0)).tolist() == [21, 22, 23]
