"""The optimizer's second moment of one matrix, and the division by its root that corrects a gradient.

    V  [m n]  element-wise mean of the squared gradient, as the optimizer keeps it or as estimated from a sample
    r  [m]    row factor: the mean of V over its columns           c  [n]  column factor: the mean over its rows
    ε         relative to √mean(V), so that rescaling every gradient leaves every score unchanged

    V ≈ r cᵀ / mean(r)          (Shazeer and Stern 2018, Adafactor; exact when V has rank one)

A corrected gradient is G / √(V + ε² mean(V)), element by element. A factored V takes ε in both factors, r + ε² mean(r)
and c + ε² mean(c): the same floor for a V that is constant, and never less than it, since V' ≥ ε⁴ mean(V) > 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class FactoredSecondMoment:
    """V = r cᵀ / mean(r).

    Raises:
        ValueError: A factor is all zero, negative somewhere, or not finite.
    """

    row: Float[Tensor, " m"]
    column: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        _require_second_moment(self.row, what="the row factor of V")
        _require_second_moment(self.column, what="the column factor of V")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row), len(self.column)


@dataclass(frozen=True)
class FullSecondMoment:
    """V, element by element.

    Raises:
        ValueError: V is all zero, negative somewhere, or not finite.
    """

    values: Float[Tensor, "m n"]

    def __post_init__(self) -> None:
        _require_second_moment(self.values, what="V")

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.values.shape
        return m, n


SecondMoment = FactoredSecondMoment | FullSecondMoment


def factor(full: FullSecondMoment) -> FactoredSecondMoment:
    """Return the row means and the column means of V, in float64."""
    V = full.values
    return FactoredSecondMoment(V.mean(1, dtype=torch.float64), V.mean(0, dtype=torch.float64))


def transpose(second_moment: SecondMoment) -> SecondMoment:
    """Return Vᵀ, to the last element: the factors swap, and ``column`` takes over the scale that ``row`` had."""
    if isinstance(second_moment, FullSecondMoment):
        return FullSecondMoment(second_moment.values.T)
    row, column = second_moment.row, second_moment.column
    # r cᵀ / mean(r) = (c (r s)ᵀ / mean(c))ᵀ where s = mean(c) / mean(r); s is 1 up to rounding in every optimizer
    return FactoredSecondMoment(column, row * (column.mean() / row.mean()))


def dense(second_moment: SecondMoment) -> Float[Tensor, "m n"]:
    """Return V in float64."""
    if isinstance(second_moment, FullSecondMoment):
        return second_moment.values.double()
    row, column = second_moment.row.double(), second_moment.column.double()
    return torch.outer(row / row.mean(), column)


def folded_scales(factored: FactoredSecondMoment, *, epsilon: float) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
    """Return ``√(mean(r') / r')`` and ``1 / √c'``: their outer product is 1/√V', and they fold into a projection.

        L (G ⊙ 1/√V') Rᵀ = (L diag(row scale)) G (R diag(column scale))ᵀ

    Args:
        factored: V as its factors.
        epsilon: Relative to √mean(V): r' = r + ε² mean(r), c' = c + ε² mean(c), V' = r' c'ᵀ / mean(r').

    Returns:
        Row scale and column scale, in float64.

    Raises:
        ValueError: A factor holds a zero and epsilon is too small to lift it.
    """
    row = _with_floor(factored.row.double(), epsilon=epsilon)
    column = _with_floor(factored.column.double(), epsilon=epsilon)
    return (row.mean() / row).sqrt(), column.rsqrt()


def inverse_root(full: FullSecondMoment, *, epsilon: float) -> Float[Tensor, "m n"]:
    """Return ``1 / √(V + ε² mean(V))``, in float64 for a float64 V and in float32 for any other.

    Raises:
        ValueError: V holds a zero and epsilon is too small to lift it.
    """
    V = full.values
    mean = V.mean(dtype=torch.float64).item()
    relative = V.to(torch.promote_types(V.dtype, torch.float32)) / mean  # near 1: ε² mean(V) itself may underflow
    return _with_floor(relative, epsilon=epsilon).rsqrt_().mul_(mean**-0.5)


def accumulate_estimate(
    row_sum: Float[Tensor, " m"],
    column_sum: Float[Tensor, " n"],
    *,
    output_gradients: Float[Tensor, "B T m"],
    activations: Float[Tensor, "B T n"],
) -> None:
    """Add ``Σ_b Σ_j G_ij²`` to row_sum and ``Σ_b Σ_i G_ij²`` to column_sum, G = Σ_t δ_t x_tᵀ of each example b.

    No G [m n] is formed: Σ_j G_ij² = Σ_ts δ_ti δ_si (x_t·x_s), so two [T T] products per example are enough.

    Args:
        row_sum: float64, added to in place.
        column_sum: float64, added to in place.
        output_gradients: δ, zero at padding.
        activations: x.
    """
    delta, x = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (output_gradients, activations))
    row_sum += _squared_norms(delta, x @ x.mT)
    column_sum += _squared_norms(x, delta @ delta.mT)


def estimate(
    row_sum: Float[Tensor, " m"], column_sum: Float[Tensor, " n"], *, num_examples: int
) -> FactoredSecondMoment:
    """Return V's factors from what ``accumulate_estimate`` summed over ``num_examples`` examples."""
    m, n = len(row_sum), len(column_sum)
    return FactoredSecondMoment(row_sum / (num_examples * n), column_sum / (num_examples * m))


def _squared_norms(vectors: Float[Tensor, "B T d"], inner: Float[Tensor, "B T T"]) -> Float[Tensor, " d"]:
    """``Σ_b Σ_ts v_ti K_ts v_si``, in float64; K is positive semi-definite, so a negative example is rounding."""
    return (vectors * (inner @ vectors)).sum(1, dtype=torch.float64).clamp_(min=0).sum(0)


def _with_floor(V: Tensor, *, epsilon: float) -> Tensor:
    """``V + ε² mean(V)``."""
    floored = V + epsilon**2 * V.mean()
    if not floored.min() > 0:
        raise ValueError(f"V holds a zero and cannot be divided by at epsilon={epsilon}; raise epsilon, to 1e-8 say")
    return floored


def _require_second_moment(V: Tensor, *, what: str) -> None:
    low, high = (bound.item() for bound in V.aminmax())
    if not (low >= 0 and 0 < high < float("inf")):  # false for NaN, which aminmax passes on
        raise ValueError(
            f"{what} ranges from {low} to {high}, but a mean of squares is finite, never negative, and not all zero: "
            "take it from a checkpoint with at least one finite optimizer step, or estimate it"
        )
