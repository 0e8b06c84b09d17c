"""An answer in a notebook. Everything foreign is escaped: text stays text."""

from collections.abc import Iterator

import polars as pl
from markupsafe import Markup, escape

from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.answers import Answer, Documents, Influence
from trackstar.tasks.report.passages import Words, mark, tones, visible

SHOWN_CHARACTERS = 600
SHOWN_OPPONENTS = 3
STYLE = Markup(
    "<style>.trackstar{font:14px/1.5 system-ui,sans-serif;max-width:60em}.trackstar ol{padding-left:2em}"
    ".trackstar small{opacity:.7}.trackstar .methods{display:flex;flex-wrap:wrap;gap:0 2em}"
    ".trackstar .methods>section{flex:1 1 22em}.trackstar i{font-style:normal;border-radius:2px}"
    ".trackstar .p1{background:rgba(20,140,60,.15)}.trackstar .p2{background:rgba(20,140,60,.3)}"
    ".trackstar .p3{background:rgba(20,140,60,.45)}.trackstar .p4{background:rgba(20,140,60,.6)}"
    ".trackstar .n1{background:rgba(190,50,30,.15)}.trackstar .n2{background:rgba(190,50,30,.3)}"
    ".trackstar .n3{background:rgba(190,50,30,.45)}.trackstar .n4{background:rgba(190,50,30,.6)}</style>"
)
NO_WORDS = Words(frozenset(), frozenset())


def answer_html(answer: Answer) -> str:
    """The question, each method's documents beside each other, and what their scores mean."""
    said = " (what the model says)" if answer.said is not None else ""
    rather = (
        "" if answer.contrast is None else Markup(" rather than <b><bdi>{}</bdi></b>").format(visible(answer.contrast))
    )
    heading = Markup("<p><bdi>{}<b>{}</b></bdi>{}<br><small>probability {:.3f}{}</small></p>").format(
        visible(answer.prompt),
        visible(answer.completion),
        rather.format(visible(answer.contrast or "")),
        answer.probability,
        said,
    )
    heading += Markup("").join(
        Markup("<p><small>{}</small></p>").format(visible(warning)) for warning in answer.warnings
    )
    methods = Markup("").join(_method(answer, method) for method in answer.methods)
    notes = Markup("").join(_notes(answer))
    return str(
        Markup('{}<div class="trackstar">{}<div class="methods">{}</div>{}</div>').format(
            STYLE, heading, methods, notes
        )
    )


def documents_html(documents: Documents) -> str:
    item = Markup("<li><bdi>{}</bdi><br><small><bdi>{}</bdi> · <bdi>{}</bdi></small></li>")
    items = Markup("").join(item.format(visible(d.text), visible(d.id), visible(d.source)) for d in documents)
    return str(Markup('{}<div class="trackstar"><ul>{}</ul></div>').format(STYLE, items))


def frame_html(frame: pl.DataFrame) -> str:
    """A table of any values."""
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in frame.columns)
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(visible(str(v))) for v in row))
        for row in frame.iter_rows()
    )
    return str(Markup('<div class="trackstar"><table><tr>{}</tr>{}</table></div>').format(head, rows))


def _method(answer: Answer, method: str) -> Markup:
    opponents = answer.of(method, OPPONENT)[:SHOWN_OPPONENTS]
    below = Markup("<h5>opponents</h5><ol>{}</ol>").format(_items(opponents)) if opponents else ""
    return Markup("<section><h4>{}</h4><ol>{}</ol>{}</section>").format(
        method, _items(answer.of(method, PROPONENT)), below
    )


def _items(influences: list[Influence]) -> Markup:
    return Markup("").join(map(_item, influences))


def _item(found: Influence) -> Markup:
    shown = found.text[:SHOWN_CHARACTERS]
    text = mark(visible(shown), NO_WORDS, tones(found.tokens, 0, len(shown)))
    rest = f" … ({len(found.text):,} characters)" if len(found.text) > len(shown) else ""
    states = " · states the answer" if found.states_answer else ""
    return Markup("<li><bdi>{}</bdi>{}<br><small>{:+.3f} · <bdi>{}</bdi> · <bdi>{}</bdi>{}</small></li>").format(
        text, rest, found.score, visible(found.id), visible(found.document.source), states
    )


def _notes(answer: Answer) -> Iterator[Markup]:
    for method, spread in answer.spreads.items():
        best = answer.of(method, PROPONENT)
        if best:
            yield Markup("<p><small>{}: {}</small></p>").format(method, escape(spread.describe(best[0].score)))
