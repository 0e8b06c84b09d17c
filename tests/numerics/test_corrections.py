"""Every correction: kept as tensors and read again, it does to a gradient what its definition says."""

import pytest
import torch

from trackstar.tasks.numerics.corrections import CORRECTIONS, from_tensors, to_tensors
from trackstar.tasks.numerics.corrections.correction import Floors
from trackstar.tasks.numerics.corrections.factored_v import FactoredV
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.corrections.none import Uncorrected
from trackstar.tasks.numerics.gradients import MatrixProjection
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, dense

M, N, K = 7, 5, 3
FLOORS = Floors(epsilon=1e-8, factor_damping=0.01)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _examples():
    return {
        "layers.0.a.weight": FactoredV(FactoredSecondMoment(_random(M).abs() + 0.1, _random(N, seed=1).abs() + 0.1)),
        "layers.0.b.weight": FullV(FullSecondMoment(_random(M, N, seed=2) ** 2 + 0.1)),
    }


def _applied(projection: MatrixProjection, G):
    """L (G ⊙ S) Rᵀ, as the engine takes a projection."""
    scaled = G if projection.scale is None else G * projection.scale
    return scaled if projection.left is None else projection.left.double() @ scaled @ projection.right.double().T


def _defined(correction, G):
    """The corrected gradient from the definition."""
    if isinstance(correction, Uncorrected):
        return G
    return G / dense(correction.V).sqrt()


@pytest.mark.parametrize("correction", [Uncorrected((M, N)), *_examples().values()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("is_projected", [True, False])
def test_a_projection_is_that_of_the_corrected_gradient(correction, is_projected):
    G, L, R = _random(M, N, seed=3), _random(K, M, seed=4), _random(K, N, seed=5)
    sides = (L, R) if is_projected else (None, None)
    found = _applied(correction.projection("module", *sides, floors=FLOORS), G)
    expected = _defined(correction, G)
    if is_projected:
        expected = L @ expected @ R.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # scales are float32


def test_what_is_kept_of_a_correction_is_the_correction_again():
    examples = _examples()
    read = from_tensors(to_tensors(examples))
    assert {name: type(correction) for name, correction in read.items()} == {
        name: type(correction) for name, correction in examples.items()
    }
    for name, correction in examples.items():
        for kept, again in zip(correction.tensors().values(), read[name].tensors().values(), strict=True):
            assert torch.equal(kept, again)


def test_no_two_corrections_keep_tensors_of_the_same_names():
    assert len({frozenset(kind.names) for kind in CORRECTIONS}) == len(CORRECTIONS)


def test_tensors_of_no_correction_are_refused_by_name():
    with pytest.raises(ValueError, match=r"layers\.0\.a\.weight has the tensors column, which no correction keeps"):
        from_tensors({"layers.0.a.weight.column": _random(N)})
