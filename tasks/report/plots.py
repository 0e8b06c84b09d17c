"""Where things lie in the report's drawings; the templates hold the markup."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.numerics.histogram import upper_edge

STRIP_WIDTH = 120.0
PLOT_WIDTH, PLOT_HEIGHT = 460.0, 240.0
MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP, MARGIN_RIGHT = 44.0, 34.0, 10.0, 12.0
POINTS_PER_CURVE = 160
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 320.0, 44.0
BULK = 0.99


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to [0, STRIP_WIDTH]."""

    low: float
    high: float

    def place(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * STRIP_WIDTH, 2)


@dataclass(frozen=True)
class HistogramPlot:
    """Counts on a logarithmic axis as one outline, with what a reader who cannot see it is told.

    Attributes:
        outline: "x,y x,y …", as SVG's polygon takes them.
        zero: Where the score 0 lies, or None where it is not between the ends.
        evidence: Where the evidence lies.
        bulk: 99 % of the candidates score at most this.
    """

    outline: str
    zero: float | None
    evidence: tuple[float, ...]
    num_candidates: int
    low: float
    high: float
    bulk: float
    width: float = HISTOGRAM_WIDTH
    height: float = HISTOGRAM_HEIGHT


@dataclass(frozen=True)
class Curve:
    name: str
    points: str  # "x,y x,y …", as SVG's polyline takes them


@dataclass(frozen=True)
class SpectrumPlot:
    """Curves over their rank on two logarithmic axes, with ticks as (position, label)."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    crossing: float | None
    width: float = PLOT_WIDTH
    height: float = PLOT_HEIGHT
    left: float = MARGIN_LEFT
    bottom: float = PLOT_HEIGHT - MARGIN_BOTTOM
    top: float = MARGIN_TOP
    right: float = PLOT_WIDTH - MARGIN_RIGHT


def shared_axis(estimates: Iterable[Estimate]) -> Axis:
    """One axis for a metric of all methods; it holds 0 and ends on round numbers."""
    bounds = [bound for estimate in estimates for bound in (estimate.low, estimate.high, estimate.value)]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    step = _round_step(high - low)
    if high == low:
        return Axis(0.0, 1.0)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def spectrum_plot(spectra: Mapping[str, Sequence[float]], *, crossing: int | None = None) -> SpectrumPlot | None:
    """Each spectrum's positive values, highest first, against their rank; None where there are fewer than two.

    Args:
        crossing: The component at which to draw a line, if it lies within the plot.
    """
    curves = {name: sorted((value for value in values if value > 0), reverse=True) for name, values in spectra.items()}
    curves = {name: values for name, values in curves.items() if len(values) > 1}
    if not curves:
        return None
    longest = max(len(values) for values in curves.values())
    x_end = math.log10(longest)
    y_low = math.floor(min(math.log10(values[-1]) for values in curves.values()))
    y_high = max(math.ceil(max(math.log10(values[0]) for values in curves.values())), y_low + 1)

    def x(exponent: float) -> float:
        return round(MARGIN_LEFT + exponent / x_end * (PLOT_WIDTH - MARGIN_LEFT - MARGIN_RIGHT), 1)

    def y(exponent: float) -> float:
        share = (exponent - y_low) / (y_high - y_low)
        return round(PLOT_HEIGHT - MARGIN_BOTTOM - share * (PLOT_HEIGHT - MARGIN_BOTTOM - MARGIN_TOP), 1)

    def points(values: Sequence[float]) -> str:
        return " ".join(f"{x(math.log10(rank))},{y(math.log10(values[rank - 1]))}" for rank in _log_ranks(len(values)))

    step = max(1, math.ceil((y_high - y_low) / 6))
    return SpectrumPlot(
        curves=tuple(Curve(name=name, points=points(values)) for name, values in curves.items()),
        x_ticks=tuple((x(exponent), f"{10**exponent:,}") for exponent in range(math.floor(x_end) + 1)),
        y_ticks=tuple((y(exponent), f"1e{exponent}") for exponent in range(y_low, y_high + 1, step)),
        crossing=x(math.log10(crossing)) if crossing and crossing <= longest else None,
    )


def histogram_plot(counts: Sequence[int], *, low: float, high: float, evidence: Sequence[float]) -> HistogramPlot:
    """How the scores of one query are spread; one candidate among many is still seen."""
    width, tallest = HISTOGRAM_WIDTH / len(counts), math.log1p(max(counts))
    points = [(0.0, HISTOGRAM_HEIGHT)]
    for number, count in enumerate(counts):
        y = HISTOGRAM_HEIGHT * (1 - math.log1p(count) / tallest)
        points += [(number * width, y), ((number + 1) * width, y)]
    points.append((HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT))

    def x(score: float) -> float:
        return round((score - low) / (high - low) * HISTOGRAM_WIDTH, 1) if high > low else 0.0

    return HistogramPlot(
        outline=" ".join(f"{x:g},{y:.0f}" for x, y in points),
        zero=x(0.0) if low <= 0 <= high else None,
        evidence=tuple(sorted(x(score) for score in evidence)),
        num_candidates=sum(counts),
        low=low,
        high=high,
        bulk=upper_edge(counts, BULK, low=low, high=high),
    )


def _log_ranks(count: int) -> list[int]:
    """Ranks from 1 to count, evenly spaced on a logarithmic axis, each once."""
    exponents = (math.log(count) * index / (POINTS_PER_CURVE - 1) for index in range(POINTS_PER_CURVE))
    return sorted({min(count, round(math.exp(exponent))) for exponent in exponents})


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, at most half of the span."""
    if span == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 2))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 2 * (1 + 1e-9))
