import html
import re

import polars as pl
import pytest
from markdown_it import MarkdownIt

from trackstar.storage.queries import Query
from trackstar.storage.results import PROPONENT, RESULT_SCHEMA
from trackstar.tasks.report.artifacts import SHOWN_CHARACTERS, escape_markdown, proponents_markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil/p.png)",
    "[click](javascript:alert(1))",
    "<http://evil>",
    "http://evil.example/path",
    "www.evil.example",
    "a | b | c",
    "one\n\n# two\n| three |",
    "`code` **bold** ~~gone~~ &lt;b&gt;",
    "\\| \\[x\\](y)",
    "| --- | --- |",
]


def markdown_of(text):
    query = Query(id="q", prompt=text, completion=text)
    frame = pl.DataFrame([("q", "trackstar", PROPONENT, 1, text, 0.5)], schema=RESULT_SCHEMA, orient="row")
    return proponents_markdown(frame, [query], {text: text}, {"q": {"answer": text, "probability": 0.5}})


def rendered(text):
    """The HTML of it: its tags, and what is to be read between them."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown_of(text))
    return re.findall(r"<[^>]*>", page), html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_is_read_as_it_is_and_makes_no_tag_cell_or_row(text):
    tags, shown = rendered(text)
    assert tags == rendered("harmless")[0]
    assert shown.count(" ".join(text.split())) == 5  # prompt, completion, answer, id and text


@pytest.mark.parametrize("text", ["http://evil.example/path", "www.evil.example", "me@evil.example"])
def test_no_address_is_left_that_a_viewer_could_make_a_link_of(text):
    assert not re.search(r"https?:|www\.|\w@", escape_markdown(text))


def test_a_long_text_is_shortened_before_it_is_escaped():
    assert escape_markdown("x" * (SHOWN_CHARACTERS + 1)) == "x" * SHOWN_CHARACTERS + "…"
