"""Answers as people see them: hostile text stays text in a terminal and in a notebook, and no line is too wide."""

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.answer_text import plain_text
from trackstar.tasks.asking.answers import Answer, Document, Documents, Influence, Spread
from trackstar.tasks.asking.completions import CompletedToken, Completion
from trackstar.tasks.report.passages import Token

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "[bold red]markup[/] [link=http://example.org]x[/link]",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\u202egnp.exe\u2066\u200b\ud800",
    "</style></div>&lt;b&gt;\"'",
    "a\nb\r\nc\td\x00\x08",
]
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
OF_A_VIEW = ["style", "div", "p", "b", "br", "small", "section", "h4", "h5", "ol", "ul", "li", "i", "bdi"]
SPREAD = Spread(1000, 0.0, 0.01, -0.02, 0.02, background_best=(0.05, 0.2))


def influence(text, *, method="trackstar", kind=PROPONENT, rank=1, score=0.1, tokens=None, states=False):
    document = Document(id=text, text=text, file=text, row=3, columns={"source": text})
    tokens = (Token(0, len(text), score),) if tokens is None else tokens
    return Influence(method, kind, rank, score, document, tokens, states)


def answer(texts, *, methods=("trackstar", "bm25"), contrast=None):
    proponents = [influence(text, method=method, states=True) for method in methods for text in texts]
    said = Completion("p", (CompletedToken(0, 3, "abc", 0.5),))
    return Answer(
        prompt=texts[0],
        completion=texts[-1],
        probability=0.25,
        proponents=tuple(proponents),
        opponents=tuple(influence(text, kind=OPPONENT, score=-0.1) for text in texts),
        index="INDEX",
        settings={"methods": list(methods), "scores": {"trackstar": {"whitening": "train", "mixing_weight": 0.0}}},
        spreads={"trackstar": SPREAD},
        contrast=contrast,
        contrast_probability=None if contrast is None else 0.5,
        said=said,
    )


def printed(shown, width=80, **options):
    console = Console(width=width, force_terminal=True, color_system="truecolor", highlight=False, **options)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.loose, self.attributes, self.depth = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.depth += tag == "bdi"

    def handle_endtag(self, tag):
        self.depth -= tag == "bdi"

    def handle_data(self, data):
        self.text.append(data)
        if not self.depth:
            self.loose.append(data)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_a_terminal(text):
    for shown in (answer([text, "tame"]), Documents([Document(text, text, text, 1)])):
        coloured = printed(shown)
        ours = re.compile(r"\x1b\[[0-9;]*m")
        for seen in (ours.sub("", coloured), str(shown)):
            assert not CONTROL.search(seen)
            assert not REORDERING.search(seen)
    if "bold red" in text:
        assert "[bold red]markup[/]" in str(answer([text]))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_a_notebook(text):
    for shown in (answer([text, "tame"], contrast=text), Documents([Document(text, text, text, 1)])):
        parser = Tags()
        parser.feed(shown._repr_html_())
        assert set(parser.tags) <= set(OF_A_VIEW)
        assert set(parser.attributes) <= {"class"}
        assert not CONTROL.search("".join(parser.text))
        assert not REORDERING.search("".join(parser.loose))  # what reorders does so within its own text alone
        if "script" in text:
            assert "<script>alert(1)</script>" in "".join(parser.text)


def test_json_is_ascii_and_comes_back_whole():
    whole = answer([text.replace("\ud800", "") for text in HOSTILE], contrast=" else").to_dict()
    encoded = json.dumps(whole, allow_nan=False)
    assert encoded.isascii()
    assert "\x1b" not in encoded
    assert json.loads(encoded) == whole


def test_the_object_has_the_keys_that_programs_rely_on():
    found = answer(["one", "two"]).to_dict()
    assert list(found) == ["prompt", "completion", "probability", "proponents", "opponents", "index", "settings"]
    assert list(answer(["one"], contrast=" else").to_dict())[2] == "contrast"
    assert list(found["proponents"][0]) == ["method", "rank", "id", "score", "text", "tokens"]
    assert list(found["proponents"][0]["tokens"][0]) == ["start", "stop", "share"]
    assert [p["method"] for p in found["proponents"]] == ["trackstar", "trackstar", "bm25", "bm25"]


@pytest.mark.parametrize("width", [40, 80, 130, 200])
def test_no_line_is_wider_than_the_terminal_and_wide_ones_have_methods_side_by_side(width):
    long = "The river sleeps under the bridge and " * 30
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed(answer([long, "short"]), width=width)).splitlines()
    assert all(len(line) <= width for line in lines)
    side_by_side = any("trackstar: proponents" in line and "bm25: proponents" in line for line in lines)
    assert side_by_side == (width >= 120)


def test_tokens_that_carry_the_score_are_coloured_by_sign_and_where_it_stands_is_said():
    tokens = (Token(0, 3, 0.01), Token(3, 10, 0.1), Token(10, 15, -0.09))
    shown = answer(["tame"], methods=("trackstar",))
    coloured = printed(
        Answer(**{**vars(shown), "proponents": (influence("The Vienna town", tokens=tokens, states=True),)})
    )
    assert re.search(r"\x1b\[[0-9;]*32m[^\x1b]*Vienna", coloured)  # green
    assert re.search(r"\x1b\[[0-9;]*31m[^\x1b]*town", coloured)  # red
    text = str(shown)
    assert "states the answer" in text
    assert "0.100 is 10.0 standard deviations above the mean of 1,000 documents" in " ".join(text.split())
    assert "higher than the best score of 1 of 2 standing queries" in " ".join(text.split())
    assert "R_train alone whitens" in " ".join(text.split())
    assert "(what the model says)" in text


def test_a_text_in_one_line_keeps_every_character_in_its_place():
    for text in HOSTILE:
        assert len(plain_text(text)) == len(text)


def test_a_place_among_equal_scores_is_none():
    assert Spread(3, 0.5, 0.0, 0.5, 0.5).place(0.5) == 0.0
