"""An answer in a terminal: texts wrapped at its width, their telling tokens coloured, scores explained.

Everything foreign goes through ``plain_text``: no escape sequence and no markup of a corpus reaches the terminal.
"""

import io
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.answers import Answer, Documents, Influence
from trackstar.tasks.report.passages import tones, visible

WIDTH = 80
SIDE_BY_SIDE = 60  # columns that a method needs beside another one
SHOWN_CHARACTERS = 600
SHOWN_OPPONENTS = 3
SPACE = re.compile(r"\s")
REORDERING = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
# weakest to strongest; readable on light and dark backgrounds, and told apart without colour by weight and underline
RAISES = ("", "green", "bold green", "bold underline green", "bold reverse green")
LOWERS = ("", "red", "bold red", "bold underline red", "bold reverse red")


def plain_text(text: str) -> str:
    """The text in one line, character for character: what a terminal would obey or reorder by is shown as U+FFFD."""
    return SPACE.sub(" ", REORDERING.sub("\ufffd", visible(text)))


def plain(shown: Any) -> str:
    """What would be printed, without colour, at 80 columns."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, highlight=False).print(shown.__rich__())
    return buffer.getvalue().rstrip("\n")


def answer_text(answer: Answer) -> RenderableType:
    """The question, each method's documents, and what their scores mean."""
    columns = [Group(*_method(answer, method)) for method in answer.methods]
    return Group(*_question(answer), _Beside(columns), *_explained(answer))


def documents_text(documents: Documents) -> RenderableType:
    return Group(
        *(
            Group(Text(plain_text(d.text)), Text(f"{plain_text(d.id)}  {plain_text(d.source)}", style="dim"), "")
            for d in documents
        )
    )


class _Beside:
    """Columns side by side where the terminal is wide enough for all, else one below the other."""

    def __init__(self, columns: list[Group]) -> None:
        self._columns = columns

    def __rich_console__(self, console: Console, options: Any) -> Iterator[RenderableType]:
        count = len(self._columns)
        if count > 1 and options.max_width >= count * SIDE_BY_SIDE:
            yield Columns(self._columns, width=options.max_width // count - 2, padding=(0, 2))
        else:
            yield from self._columns


def _question(answer: Answer) -> Iterator[RenderableType]:
    said = "  (what the model says)" if answer.said is not None else ""
    prompt = Text(plain_text(answer.prompt))
    prompt.append(plain_text(answer.completion), style="bold")
    yield prompt
    facts = [f"probability {answer.probability:.3f}{said}"]
    if answer.contrast is not None:
        facts.append(f"rather than {plain_text(answer.contrast)!r}, probability {answer.contrast_probability:.3g}")
    yield Text(", ".join(facts), style="dim")
    yield from (Text(plain_text(warning), style="yellow") for warning in answer.warnings)
    yield ""


def _method(answer: Answer, method: str) -> Iterator[RenderableType]:
    proponents, opponents = answer.of(method), answer.of(method, OPPONENT)[:SHOWN_OPPONENTS]
    yield Text(f"{method}: proponents", style="bold")
    yield from map(_influence, proponents)
    if opponents:
        yield Text(f"{method}: opponents, against which the completion was learnt", style="bold")
        yield from map(_influence, opponents)


def _influence(found: Influence) -> RenderableType:
    text = _toned(found)
    below = Text(f"{found.score:+.3f}  {plain_text(found.id)}  {plain_text(found.document.source)}", style="dim")
    if found.states_answer:
        below.append("  states the answer", style="not dim cyan")
    rank = Text(f"{found.rank:>2} ")
    return Group(Text.assemble(rank, text), Padding(below, (0, 0, 0, 3)))


def _toned(found: Influence) -> Text:
    shown = found.text[:SHOWN_CHARACTERS]
    text = Text(plain_text(shown))
    toned = tones(found.tokens, 0, len(shown))
    for tone, run in groupby(range(len(toned)), key=lambda place: toned[place] * (not shown[place].isspace())):
        if tone:
            places = list(run)
            text.stylize((RAISES if tone > 0 else LOWERS)[abs(tone)], places[0], places[-1] + 1)
    if len(found.text) > len(shown):
        text.append(f" … ({len(found.text):,} characters)", style="dim")
    return text


def _explained(answer: Answer) -> Iterator[RenderableType]:
    yield ""
    for method, spread in answer.spreads.items():
        best = answer.of(method, PROPONENT)
        if best:
            yield Text(f"{method}: {spread.describe(best[0].score)}", style="dim")
    if answer.spreads:
        yield Text(
            "A score is the cosine of two corrected gradients. Where it is negative, a step of training on the "
            "document makes the completion less likely.",
            style="dim",
        )
    for method, scores in answer.settings["scores"].items():
        if scores["whitening"] == "train":
            yield Text(
                f"{method}: one question has no R_eval worth mixing in, so R_train alone whitens (--background QUERIES "
                "mixes in that of a standing query set).",
                style="dim",
            )
        elif scores["whitening"] == "mixed":
            yield Text(f"{method}: λ = {scores['mixing_weight']:.3g} of the standing queries' R_eval.", style="dim")
