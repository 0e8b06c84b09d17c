"""``mnist.html``: the study as one page that reads from raw gradient to final score; ``mnist.json``: its numbers.

The page needs no network and runs no script. Nothing on it is foreign but the name of the data, which is escaped.
"""

import json
from functools import partial
from pathlib import Path

from trackstar.storage.layout import location
from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.mnist import figures
from trackstar.tasks.mnist.claims import PUBLISHED, TESTS, Way
from trackstar.tasks.mnist.model import VARIANTS
from trackstar.tasks.mnist.results import BothTests, Study
from trackstar.tasks.report.templating import STYLE, asset, page_template

PAGE, NUMBERS = "mnist.html", "mnist.json"
TEMPLATE = Path(__file__).with_name("mnist.html.j2")
MINUS = "\N{MINUS SIGN}"

ENCODINGS = {
    "gradient": "gradient",
    "corrected": "gradient / √V",
    "two_sided": "two-sided projection",
    "one_sided": "one-sided projection",
    "two_sided_train": "two-sided, R train",
    "one_sided_train": "one-sided, R train",
    "two_sided_mixed": "two-sided, R mixed",
    "one_sided_mixed": "one-sided, R mixed",
}
GALLERY_LABELS = {
    "gradient dot": "∇Loss, dot product",
    "gradient cosine": "∇Loss, unit norm",
    "corrected cosine": "÷ √V",
    "two_sided cosine": "÷ √V, P",
    "two_sided_train cosine": "÷ √V, P, R train",
    "two_sided_mixed cosine": "÷ √V, P, R mixed",
}


def write_report(study: Study, out: str) -> str:
    """Write the page and the numbers; return the page's place."""
    root = location(out)
    (root / NUMBERS).write_bytes((json.dumps(study.numbers(), indent=1) + "\n").encode())
    (root / PAGE).write_bytes(render_report(study).encode())
    return str(root / PAGE)


def render_report(study: Study) -> str:
    """The whole page; the same study gives the same bytes."""
    filters = {"percent": percent, "points": points, "interval": interval}
    return page_template(TEMPLATE, filters=filters).render(
        study=study,
        table=study.table(),
        claims=study.claims(),
        hessian_wins=study.hessian_wins(),
        control_wins=study.control_wins(),
        parameter_rows=study.parameter_rows(),
        final_accuracy={variant: study.accuracy(variant)[-1][1] for variant in VARIANTS},
        pictures={pictures.variant: pictures for pictures in study.pictures},
        ranges={sweep: sweep_range(study, sweep) for sweep in figures.SWEEPS},
        catch_up=catch_up(study),
        published=PUBLISHED,
        tests=TESTS,
        variants=VARIANTS,
        encodings=ENCODINGS,
        gallery_labels=GALLERY_LABELS,
        way=Way,
        wording=wording,
        at=partial(at, study),
        figures=figures,
        css=asset(STYLE),
    )


def percent(value: float) -> str:
    return f"{value:.1f}"


def points(value: float) -> str:
    """A difference in percentage points, with a true minus sign."""
    return f"{value:+.1f}".replace("-", MINUS)


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    show = points if signed else percent
    return f"{show(estimate.low)} to {show(estimate.high)}"


def wording(way: Way) -> str:
    """A way of scoring in words, short enough for a table."""
    norm = ", dot" if way.norm == "dot" else ", cosine" if way.encoding == "gradient" else ""
    return f"{way.variant} {ENCODINGS[way.encoding]}{norm}"


def at(study: Study, sweep: str, curve: str, x: float) -> Estimate:
    """The same-class win rate at one setting of a curve."""
    return dict(study.curves(sweep)[curve])[x]["same_class"]


def sweep_range(study: Study, sweep: str) -> dict[str, tuple[float, Estimate, float, Estimate]]:
    """Per curve the setting and same-class win rate at its lowest and at its highest point."""
    found = {}
    for curve, line in study.curves(sweep).items():
        ordered = sorted(((x, both["same_class"]) for x, both in line), key=lambda point: point[1].value)
        found[curve] = (*ordered[0], *ordered[-1])
    return found


def catch_up(study: Study) -> dict[float, tuple[float | None, Estimate]]:
    """For each size k of the one-sided projection, the smallest swept k at which the two-sided one wins as often."""
    curves: dict[str, list[tuple[float, BothTests]]] = study.curves("projection")
    two_sided = [(x, both["same_class"].value) for x, both in curves["two-sided, no R"]]
    return {
        x: (next((k for k, value in two_sided if value >= both["same_class"].value), None), both["same_class"])
        for x, both in curves["one-sided, no R"]
    }
