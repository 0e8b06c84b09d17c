"""Every correction: kept as tensors and read again, it does to a gradient what its definition says."""

import numpy as np
import pytest
import scipy.linalg
import torch

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections import CORRECTIONS, from_tensors, to_tensors
from trackstar.tasks.numerics.corrections.axes import Axes, choose_axes
from trackstar.tasks.numerics.corrections.correction import Floors
from trackstar.tasks.numerics.corrections.ekfac import EKFAC
from trackstar.tasks.numerics.corrections.factored_v import FactoredV
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.corrections.kfac import KFAC, KroneckerTap, decomposed
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
        "layers.0.c.weight": (kfac := decomposed(_gram(N, seed=6), _gram(M, seed=7))),
        "layers.0.d.weight": EKFAC(kfac, (_random(M, N, seed=8) ** 2 + 0.1).float()),
        "layers.0.e.weight": Axes(kfac, torch.tensor([1, 2, 13, 30]), _random(4, seed=9).float()),
    }


def _gram(size, *, seed):
    rows = _random(30, size, seed=seed)
    return rows.T @ rows / 30


def _damped(values):
    return values + FLOORS.factor_damping * values.mean()


def _applied(projection: MatrixProjection, G):
    """L ((U G Wᵀ) ⊙ S) Rᵀ, as the engine takes a projection."""
    if projection.left_turn is not None:
        G = projection.left_turn.double() @ G @ projection.right_turn.double().T
    scaled = G if projection.scale is None else G * projection.scale
    return scaled if projection.left is None else projection.left.double() @ scaled @ projection.right.double().T


def _defined(correction, G):
    """The corrected gradient from the definition."""
    if isinstance(correction, Uncorrected):
        return G
    if isinstance(correction, KFAC):
        S, A = _gram(M, seed=7).numpy(), _gram(N, seed=6).numpy()
        roots = [scipy.linalg.inv(scipy.linalg.sqrtm(F + 0.01 * np.trace(F) / len(F) * np.eye(len(F)))) for F in (S, A)]
        return torch.from_numpy(roots[0] @ G.numpy() @ roots[1])
    if isinstance(correction, EKFAC):
        Q_S, Q_A = correction.kronecker.output_basis.double(), correction.kronecker.input_basis.double()
        return (Q_S.T @ G @ Q_A) / _damped(correction.variances.double()).sqrt()
    return G / dense(correction.V).sqrt()


@pytest.mark.parametrize(
    "correction",
    [Uncorrected((M, N)), *(of for of in _examples().values() if not isinstance(of, Axes))],
    ids=lambda c: type(c).__name__,
)
@pytest.mark.parametrize("is_projected", [True, False])
def test_a_projection_is_that_of_the_corrected_gradient(correction, is_projected):
    G, L, R = _random(M, N, seed=3), _random(K, M, seed=4), _random(K, N, seed=5)
    sides = (L, R) if is_projected else (None, None)
    found = _applied(correction.projection("module", *sides, floors=FLOORS), G)
    expected = _defined(correction, G)
    if is_projected:
        expected = L @ expected @ R.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # scales are float32


def test_axes_are_those_of_the_eigenbasis_and_take_no_more_of_it_than_they_need():
    axes, G = _examples()["layers.0.e.weight"], _random(M, N, seed=3)
    projection = axes.projection("module", None, None, floors=FLOORS)
    assert (projection.left.shape, projection.right.shape, projection.num_dims) == ((3, M), (4, N), 4)
    found = _applied(projection, G).flatten()[projection.axes] * projection.axis_scales
    turned = axes.factors.output_basis.double().T @ G @ axes.factors.input_basis.double()
    torch.testing.assert_close(found, turned.flatten()[axes.indices] * axes.scales, rtol=1e-5, atol=1e-6)


def test_the_axes_of_largest_variance_are_kept_over_all_matrices_and_one_of_every_block():
    variances = [np.array([[5.0, 1.0], [7.0, 1.0]]), np.array([[6.0, 0.5, 8.0]]), np.array([[0.1, 0.2]])]
    blocks = ["a", "b", "c"]
    for num_axes, expected in (
        (3, [[2], [2], [1]]),
        (5, [[0, 2], [0, 2], [1]]),
        (6, [[0, 1, 2], [0, 2], [1]]),  # of two equal ones, the first
        (99, [[0, 1, 2, 3], [0, 1, 2], [0, 1]]),
    ):
        chosen = choose_axes(variances, blocks=blocks, num_axes=num_axes)
        assert [own.tolist() for own in chosen] == expected
    assert [len(own) for own in choose_axes(variances, blocks=["a", "a", "b"], num_axes=2)] == [0, 1, 1]
    with pytest.raises(ValueError, match="2 axes are to be kept of 3 blocks; keep at least one a block"):
        choose_axes(variances, blocks=blocks, num_axes=2)


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


def test_whitening_by_the_factors_makes_products_of_their_samples_white():
    """With x of covariance A and δ of S, independent, the damped K-FAC of δ xᵀ has nearly unit variance everywhere."""
    x, delta = (_random(4000, size, seed=size) @ _random(size, size, seed=20 + size) for size in (N, M))
    kfac = decomposed(x.T @ x / len(x), delta.T @ delta / len(delta))
    projection = kfac.projection("module", None, None, floors=Floors(1e-8, 1e-9))
    G = (delta @ projection.left.double().T)[:, :, None] * (x @ projection.right.double().T)[:, None, :]
    covariance = G.flatten(1).T @ G.flatten(1) / len(G)
    torch.testing.assert_close(covariance, torch.eye(M * N, dtype=torch.float64), rtol=0, atol=0.15)  # 4,000 samples


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_halves_differ_by_what_the_frobenius_norm_says(monkeypatch, share):
    monkeypatch.setattr("trackstar.tasks.numerics.corrections.kfac.NUM_PROBES", 20_000)  # relative error 1 %
    matrix = WeightMatrix("a.weight", "a", "mlp", 0, (M, N), False)
    tap = KroneckerTap(matrix, device=torch.device("cpu"))
    x, delta = _random(1, 40, N, seed=1), _random(1, 40, M, seed=2)
    first = int(40 * share)
    for rows in (slice(0, first), slice(first, 40)):
        tap.begin(torch.ones(1, rows.stop - rows.start, dtype=torch.bool))
        tap.receive(tap.keep(x[:, rows]), delta[:, rows])
        if rows.start == 0:
            tap.half()
    for found, values in zip(tap.differences(), (x[0], delta[0]), strict=True):
        one, other, both = ((v.T @ v) / len(v) for v in (values[:first], values[first:], values))
        assert found == pytest.approx(((one - other).norm() / both.norm()).item(), rel=0.05)
