"""``report.html``: the comparison as one file that needs no network, no server, and trusts no text it shows.

Texts of a corpus are foreign. Everything passes through autoescaping, element ids are numbers of ours, and the page's
Content-Security-Policy admits exactly the one style sheet and the one script that are written into it.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trackstar.tasks.evaluation.costs import STEPS
from trackstar.tasks.evaluation.metrics import no_evidence
from trackstar.tasks.report.data import Curvature, Explanation, Prediction, ReportData
from trackstar.tasks.report.metrics import EVIDENCE_TEXTS, METRIC_TEXTS, metric_columns, step_effects
from trackstar.tasks.report.plots import spectrum_plot
from trackstar.tasks.report.templating import STYLE, asset, csp_source, page_template
from trackstar.tasks.report.views import QueryView, ordered_methods, query_views

__all__ = ["Curvature", "Explanation", "Prediction", "ReportData", "render_report"]

TEMPLATE = Path(__file__).with_name("report.html.j2")
SCRIPT = Path(__file__).with_name("report.js")
SEARCHABLE_CHARACTERS = 1000
MINUS = "\N{MINUS SIGN}"


def render_report(data: ReportData) -> str:
    """The whole page; the same data gives the same bytes."""
    views = query_views(data)
    css, script = asset(STYLE), asset(SCRIPT)
    curvature = data.curvature
    template = page_template(TEMPLATE, filters={"decimal": decimal, "signed": signed, "fact": fact})
    return template.render(
        data=data,
        methods=ordered_methods(data.proponents),
        metric_columns=[] if data.metrics is None else metric_columns(data.metrics),
        metric_labels={name: label for name, (label, _) in METRIC_TEXTS.items()},
        evidence_texts=EVIDENCE_TEXTS,
        cost_labels=_cost_labels(data),
        spectrum=curvature and spectrum_plot(curvature.spectra, crossing=curvature.crossing),
        step_effects=step_effects(data),
        views=views,
        reads_tokens=data.explanation is not None and data.explanation.tokens is not None,
        no_evidence=data.metrics and no_evidence(data.metrics),
        has_evidence=any(query.relevant_ids for query in data.queries),
        index=_index(views),
        css=css,
        script=script,
        css_source=csp_source(css),
        script_source=csp_source(script),
    )


def decimal(value: float, digits: int = 3) -> str:
    """A number as it is set in a table: a true minus sign, and fewer decimals where there are digits before them."""
    digits = digits if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+,.{digits}f}".replace("-", MINUS)


def fact(value: str | int | float | bool) -> str:
    """A fact of the run as text; large counts get thousands separators, other numbers six significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    return f"{value:.6g}".replace("-", MINUS) if isinstance(value, float) else value


def _cost_labels(data: ReportData) -> list[str]:
    """What any method has a cost of, in the order in which it is paid."""
    present = dict.fromkeys(label for cost in data.costs.values() for label in cost)
    return sorted(present, key=lambda label: STEPS.index(label) if label in STEPS else len(STEPS))


def _index(views: Sequence[QueryView]) -> list[dict[str, Any]]:
    """What the page's script searches: the text of each query and which methods found its evidence."""
    return [
        {
            "text": _searchable(f"{view.query.id} {view.prompt}{view.query.completion}"),
            "found": [column.first_evidence for column in view.columns],
            "evidence": bool(view.query.relevant_ids),
        }
        for view in views
    ]


def _searchable(text: str) -> str:
    """As the page's script folds what is typed."""
    return unicodedata.normalize("NFKC", text[:SEARCHABLE_CHARACTERS]).lower()
