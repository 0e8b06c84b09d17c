"""The study's drawings as inline SVG: small panels that a page can put side by side or below one another.

Colours are written as the page's CSS variables, so that the drawings follow its light and dark themes; the same numbers
give the same bytes.
"""

import base64
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, NullFormatter

from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.mnist.claims import PUBLISHED, Test, Way
from trackstar.tasks.mnist.model import VARIANTS, Variant
from trackstar.tasks.mnist.results import Study

INK, SOFT, LINE, ACCENT, BAD, GOOD = "#1d2026", "#5c6270", "#e3e0d8", "#0b5870", "#9c3323", "#1d6638"
THEME = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", BAD: "bad", GOOD: "good"}
PANEL_INCHES = (4.2, 2.9)
CHANCE = 50
TWO_SIDED, ONE_SIDED = {"color": ACCENT}, {"color": BAD}
DASHES = {"no R": (0, (1, 1.5)), "train R": (0, (5, 2)), "mixed R": "solid"}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "figure.subplot.left": 0.14,
    "figure.subplot.right": 0.985,
    "figure.subplot.bottom": 0.16,
    "figure.subplot.top": 0.91,
}
STEPS = ("dot", "unit norm", "÷ √V", "projected", "R train", "R mixed")
SWEEPS = {
    "candidates": ("Training images in R and in the test", "log"),
    "queries": ("Evaluation images in R and in the test", "log"),
    "mixing": ("Mixing weight λ", "linear"),
    "damping": ("Damping, of R's mean eigenvalue", "log"),
    "projection": ("k: two-sided k×k, one-sided to as many numbers", "log"),
    "floor": ("ε, the floor of √V", "log"),
    "directions": ("Leading directions of R that are kept", "log"),
}


def panel(draw, *, name: str, description: str, size: tuple[float, float] = PANEL_INCHES) -> Markup:
    """One drawing as an SVG element that scales with the page."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    opening = rf'<svg class="plot" viewBox="\1" role="img" aria-label="{description}">'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', opening, svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg.replace("font: 9px 'sans-serif'", "font: 9px var(--sans)").replace("'sans-serif'", "var(--sans)"))


def accuracy(study: Study) -> Markup:
    def draw(axes: Axes) -> None:
        for variant, colour in zip(VARIANTS, (ACCENT, BAD), strict=True):
            course = study.accuracy(variant)
            _line(axes, [step for step, _ in course], [e for _, e in course], label=variant, color=colour)
        axes.set(xlabel="Adam steps", ylabel="correct, %", ylim=(0, 100))
        axes.legend(frameon=False, loc="lower right")

    return panel(draw, name="accuracy", description="Share of evaluation images classified correctly during training")


def magnitudes(study: Study, variant: Variant) -> Markup:
    """Coordinates of the gradient sorted by magnitude, each curve relative to its largest."""
    pictures = _pictures(study, variant)

    def draw(axes: Axes) -> None:
        for kind, label, colour in (("raw", "raw", BAD), ("corrected", "÷ √V", ACCENT)):
            values = np.array(pictures.magnitudes[kind])
            kept = values > 0
            axes.plot(np.array(pictures.ranks)[kept], values[kept] / values[0], label=label, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="coordinate, largest first", ylabel="magnitude", ylim=(1e-4, 1.6))
        axes.set_title(f"{variant}: size of each coordinate")
        axes.legend(frameon=False, loc="lower left")

    return panel(draw, name=f"magnitudes-{variant}", description=f"Sorted gradient coordinates, {variant} data")


def shares(study: Study, variant: Variant) -> Markup:
    """Share of the squared length that the largest coordinates hold."""
    pictures = _pictures(study, variant)

    def draw(axes: Axes) -> None:
        for kind, label, colour in (("raw", "raw", BAD), ("corrected", "÷ √V", ACCENT)):
            axes.plot(pictures.ranks, 100 * np.array(pictures.shares[kind]), label=label, color=colour)
        axes.set(xscale="log", xlabel="coordinates, largest first", ylabel="of the squared length, %", ylim=(0, 102))
        axes.set_title(f"{variant}: what they add up to")
        axes.legend(frameon=False, loc="upper left")

    return panel(draw, name=f"shares-{variant}", description=f"Cumulative share of squared length, {variant} data")


def slope_chart(study: Study, variant: Variant, test: Test) -> Markup:
    """Win rates from term to term, the published ones as rings."""
    table = study.table()
    shared = [Way(variant, "gradient", "dot"), Way(variant, "gradient"), Way(variant, "corrected")]
    paths = {
        side: [*shared, *(Way(variant, f"{side}{suffix}") for suffix in ("", "_train", "_mixed"))]
        for side in ("one_sided", "two_sided")
    }

    def draw(axes: Axes) -> None:
        for (side, path), style in zip(paths.items(), (ONE_SIDED, TWO_SIDED), strict=True):
            _line(axes, range(2, 6), [table[way][test] for way in path[2:]], marker="o", markersize=3.5, **style)
            rings = [(i, getattr(PUBLISHED[way], test)) for i, way in enumerate(path) if way in PUBLISHED and i > 2]
            _rings(axes, rings, style["color"])
            label = "one-sided" if side == "one_sided" else "two-sided"
            ends = {name: table[way_there[5]][test].value for name, way_there in paths.items()}
            offset = (7, 2 if ends[side] == max(ends.values()) else -9)
            axes.annotate(label, (5, ends[side]), xytext=offset, textcoords="offset points", **style)
        _line(axes, range(3), [table[way][test] for way in shared], marker="o", markersize=3.5, color=INK)
        _rings(axes, [(i, getattr(PUBLISHED[w], test)) for i, w in enumerate(shared) if w in PUBLISHED], INK)
        axes.set_xticks(range(6), STEPS)
        axes.set(ylim=(CHANCE, 103), xlim=(-0.3, 6.2), ylabel="wins, %")
        axes.set_title(f"{variant}, {'same class or other' if test == 'same_class' else 'right or wrong label'}")
        axes.tick_params(axis="x", labelsize=7.5)

    return panel(
        draw, name=f"slope-{variant}-{test}", description=f"Win rates from term to term, {variant} data, {test}"
    )


def matrix_image(study: Study, name: str) -> Markup:
    """R or the Hessian of one model, entry by entry, on a signed logarithmic scale of colour."""
    values = np.array(next(cell.matrices for cell in study.geometry if cell.matrices)[name])
    scaled = np.sign(values) * np.log1p(np.abs(values) / 0.05)
    scaled /= np.abs(scaled).max()
    png = _png(np.kron(scaled, np.ones((3, 3))), cmap="RdBu_r", vmin=-1, vmax=1)
    return _image(png, "the autocorrelation R" if name == "R" else "the projected Hessian H", css="matrix")


def spectra(study: Study) -> Markup:
    def draw(axes: Axes) -> None:
        for label, field, colour in (("R", "train_spectrum", ACCENT), ("|H|", "hessian_spectrum", BAD)):
            values = np.array([np.sort(np.abs(getattr(cell, field)))[::-1] for cell in study.geometry])
            middle, low, high = (np.maximum(f(values, axis=0), 1e-9) for f in (_median, np.min, np.max))
            ranks = np.arange(1, values.shape[1] + 1)
            axes.plot(ranks, middle, label=label, color=colour)
            axes.fill_between(ranks, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(yscale="log", xlabel="direction, strongest first", ylabel="eigenvalue / mean", ylim=(1e-6, 100))
        axes.legend(frameon=False)

    return panel(draw, name="spectra", description="Eigenvalues of R and of the projected Hessian")


def angles(study: Study) -> Markup:
    def draw(axes: Axes) -> None:
        for size, colour in zip(study.geometry[0].angles, (GOOD, ACCENT, BAD), strict=False):
            values = np.array([cell.angles[size] for cell in study.geometry])
            place = (np.arange(size) + 0.5) / size
            axes.plot(place, _median(values, axis=0), marker="o", markersize=2.5, label=f"leading {size}", color=colour)
            axes.fill_between(place, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axes.set(
            xlabel="principal angle, smallest first", ylabel="degrees", ylim=(0, 92), yticks=(0, 30, 60, 90), xticks=()
        )
        axes.legend(frameon=False, loc="upper left")

    return panel(draw, name="angles", description="Principal angles between leading subspaces of R and H")


def sweep(study: Study, name: str, test: Test = "same_class") -> Markup:
    """What one setting does, all others as in the set-up."""
    label, scale = SWEEPS[name]

    def draw(axes: Axes) -> None:
        for curve, line in study.curves(name).items():
            side, whitening = curve.split(", ")
            style = TWO_SIDED if side == "two-sided" else ONE_SIDED
            estimates = [both[test] for _, both in line]
            _line(
                axes, [x for x, _ in line], estimates, linestyle=DASHES[whitening], marker="o", markersize=2.5, **style
            )
        axes.set(xscale=scale, xlabel=label, ylabel="wins, %", ylim=(CHANCE, 101))
        if name in ("candidates", "queries", "projection", "directions"):
            places = sorted({x for line in study.curves(name).values() for x, _ in line})
            axes.set_xticks(places)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", which="minor", length=0)

    return panel(draw, name=f"sweep-{name}", description=f"Win rates by {label}")


def digit_image(pixels: Sequence[Sequence[int]], alternative: str) -> Markup:
    """An image of the data, dark on light."""
    shade = 255 - np.clip(np.array(pixels, dtype=np.int64), 0, 255)
    return _image(_png(shade.astype(np.uint8), cmap="gray", vmin=0, vmax=255), alternative, css="digit")


def _png(values: np.ndarray, **colours) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, values, format="png", metadata={"Software": None}, **colours)
    return buffer.getvalue()


def _image(png: bytes, alternative: str, *, css: str) -> Markup:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Markup('<img class="{}" src="{}" alt="{}">').format(css, source, alternative)


def _pictures(study: Study, variant: Variant):
    return next(pictures for pictures in study.pictures if pictures.variant == variant)


def _line(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], **style) -> None:
    axes.plot(x, [e.value for e in estimates], **style)
    band = ([e.low for e in estimates], [e.high for e in estimates])
    axes.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)


def _rings(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    if points:
        axes.plot(
            *zip(*points, strict=True), "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, alpha=0.8
        )


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    return np.median(values, axis=axis)
