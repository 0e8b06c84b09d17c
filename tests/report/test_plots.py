import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.report.plots import STRIP_WIDTH, histogram_plot, shared_axis, spectrum_plot

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted), min_size=1, max_size=5))
@settings(deadline=None)
def test_an_axis_holds_zero_and_every_interval(bounds):
    axis = shared_axis([Estimate(low=low, value=value, high=high) for low, value, high in bounds])
    for value in [0.0, *(number for triple in bounds for number in triple)]:
        assert -0.01 <= axis.place(value) <= STRIP_WIDTH + 0.01  # places are rounded to hundredths


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(0.2, 0.83, (0, 1)), (-0.004, 0.136, (-0.05, 0.15)), (0, 0, (0, 1)), (0.3, 0.3, (0, 0.3))]
)
def test_an_axis_ends_on_round_numbers(low, high, ends):
    axis = shared_axis([Estimate(low=low, value=low, high=high)])
    assert (axis.low, axis.high) == pytest.approx(ends)


def test_a_power_law_is_a_straight_line_from_corner_to_corner():
    plot = spectrum_plot({"R": [10.0 * rank**-1.0 for rank in range(1, 1001)]})
    points = np.array([[float(part) for part in point.split(",")] for point in plot.curves[0].points.split()])
    x, y = points.T
    assert (x[0], y[0], x[-1], y[-1]) == (plot.left, plot.top, plot.right, plot.bottom)
    straight = np.interp(x, [plot.left, plot.right], [plot.top, plot.bottom])
    np.testing.assert_allclose(y, straight, atol=0.15)  # both coordinates are rounded to tenths


def test_ticks_are_powers_of_ten_and_the_crossing_lies_on_its_component():
    plot = spectrum_plot({"a": [8.0, 2.0, 0.5], "b": [1.0] * 1000}, crossing=100)
    assert [label for _, label in plot.x_ticks] == ["1", "10", "100", "1,000"]
    assert [label for _, label in plot.y_ticks] == ["1e-1", "1e0", "1e1"]
    assert plot.crossing == dict((label, place) for place, label in plot.x_ticks)["100"]


def test_a_long_spectrum_is_thinned_but_keeps_its_ends():
    values = np.geomspace(1.0, 1e-8, 65536)
    plot = spectrum_plot({"R": values})
    points = plot.curves[0].points.split()
    assert len(points) <= 160
    assert points[0].startswith(f"{plot.left},")
    assert points[-1].startswith(f"{plot.right},")


def test_what_has_no_logarithm_is_not_drawn():
    assert spectrum_plot({"R": [0.0, -1e-9, 3.0]}) is None
    assert spectrum_plot({}) is None
    assert spectrum_plot({"R": [1.0, 0.1]}, crossing=5).crossing is None
    assert all(math.isfinite(place) for place, _ in spectrum_plot({"R": [1.0, 1.0]}).y_ticks)


def test_a_histogram_says_where_its_evidence_lies_and_below_what_its_bulk():
    plot = histogram_plot([98, 1, 0, 1], low=-1.0, high=1.0, evidence=[1.0, -1.0, 0.0])
    assert plot.evidence == (0.0, plot.width / 2, plot.width)
    assert (plot.zero, plot.num_candidates, plot.bulk) == (plot.width / 2, 100, 0.0)
    points = [tuple(float(part) for part in point.split(",")) for point in plot.outline.split()]
    assert points[0] == (0.0, plot.height)
    assert min(y for _, y in points) == 0
    assert points[3][1] < plot.height  # one candidate among 98 is seen


def test_a_histogram_of_equal_scores_is_one_bar():
    plot = histogram_plot([3, 0], low=0.5, high=0.5, evidence=[0.5])
    assert (plot.evidence, plot.zero, plot.bulk) == ((0.0,), None, 0.5)
