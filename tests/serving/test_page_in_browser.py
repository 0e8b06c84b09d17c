"""The page in a real browser, driven by its keys: a question, a span, a contrast, a document, a shared address."""

import json

import pytest

from tests.asking.conftest import build
from tests.report.test_in_browser import BROWSER
from tests.report.test_render import HOSTILE
from tests.serving.browser import Page
from tests.serving.conftest import listening
from tests.serving.test_api import ASKED
from tests.tiny import TEXTS
from trackstar.tasks.asking.settings import AskConfig
from trackstar.tasks.serving.served_indexes import ServedIndexes

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")

ANSWERED = "document.body.dataset.busy === undefined && document.querySelectorAll('.hit').length"
TEXT = "document.querySelector('{}').textContent"


@pytest.fixture
def page(tmp_path):
    with Page(tmp_path / "profile") as page:
        yield page


def test_a_question_is_asked_by_keys_alone_and_its_address_gives_the_same_answer(page, address):
    page.go(address)
    page.wait("document.querySelectorAll('#methods input').length > 1 && document.activeElement.id === 'prompt'")
    page.type(ASKED["prompt"])
    page.press("Enter")
    page.wait(ANSWERED)
    said = page.value("[...document.querySelectorAll('#said [data-place]')].map((token) => token.textContent)")
    assert page.value("document.querySelectorAll('.method').length") == 2

    # a token of what the model says
    page.value("document.querySelector('#said [data-place=\"0\"]').focus()")
    page.press("Enter")
    page.wait(f"{ANSWERED} && document.getElementById('completion').value")
    assert page.value("document.getElementById('completion').value") == said[0]
    pressed = page.value("[...document.querySelectorAll('[aria-pressed=\"true\"]')].map((token) => token.textContent)")
    assert pressed == said[:1]

    # a contrast
    page.value("document.getElementById('contrast').focus()")
    page.type(" Vienna")
    page.press("Enter")
    page.wait(f"{ANSWERED} && !!document.querySelector('.question')")
    assert page.value(TEXT.format(".question")).endswith("rather than  Vienna")

    # a document and its neighbours
    page.value("document.querySelector('.hit .id').focus()")
    page.press("Enter")
    page.wait("document.getElementById('document').open")
    assert page.value(TEXT.format("article.this bdi")) == page.value(TEXT.format(".hit .id"))
    assert page.value("document.querySelectorAll('dialog article').length") > 1
    page.press("Escape")
    page.wait("!document.getElementById('document').open")

    shared, shown = page.value("location.href"), page.value(TEXT.format(".columns"))
    page.go("about:blank")
    page.go(shared)
    page.wait(f"{ANSWERED} && !!document.querySelector('.question')")
    assert page.value(TEXT.format(".columns")) == shown
    assert page.value("document.querySelectorAll('#history a').length") == 3
    assert page.complaints == []


def test_a_hostile_corpus_runs_nothing(page, llama, tmp_path):
    corpus = tmp_path / "hostile.jsonl"
    texts = [*HOSTILE[:-1], *TEXTS[:6]]
    lines = [json.dumps({"id": f"{number} {text[:80]}", "text": text}) for number, text in enumerate(texts)]
    corpus.write_text("\n".join(lines))
    index = build(tmp_path / "<img src=x onerror=alert(1)>", llama, corpus)
    with listening(ServedIndexes([str(index.path)], AskConfig())) as address:
        asked = (
            "#prompt=<script>alert(1)</script>&completion=<img src=x onerror=alert(2)>&methods=trackstar,bm25&top_k=50"
        )
        page.go(f"{address}/{asked}")
        page.wait(ANSWERED)
        shown = page.value("[...document.querySelectorAll('.hit .text')].map((text) => text.textContent).join(' ')")
        assert "<script>" in shown
        page.value("[...document.querySelectorAll('.id')].find((id) => id.textContent.includes('<')).click()")
        page.wait("document.getElementById('document').open")
        assert (
            page.value("document.querySelectorAll('img, main script, dialog script, iframe, svg script').length") == 0
        )
    assert page.complaints == []


def test_what_goes_wrong_is_a_sentence_on_the_page(page, address):
    page.go(f"{address}/#prompt=The&completion= x&contrast= x")
    page.wait("!document.getElementById('error').hidden")
    assert "differ in nothing" in page.value(TEXT.format("#error"))
    assert page.value("document.getElementById('status').hidden")


def test_exports_are_safe_in_a_spreadsheet_and_keep_every_row(page, address):
    page.go(address)
    page.wait("document.querySelectorAll('#methods input').length > 1")
    found = {"method": "bm25", "rank": 1, "id": "=1+1", "score": -0.5, "text": 'a "b"\n@c', "tokens": []}
    answer = {**ASKED, "proponents": [found], "opponents": [found], "settings": {"methods": ["bm25"]}}
    kinds = f"['csv', 'jsonl', 'viewer'].map((kind) => files[kind]({json.dumps(answer)}))"
    made = page.value(f"import('/page/export.js').then((files) => {kinds})")
    assert made[0].splitlines()[1] == '"bm25","proponent","1","\'=1+1","-0.5","a ""b""'
    rows = [json.loads(line) for line in made[1].splitlines()]
    assert [(row["kind"], row["id"], row["prompt"]) for row in rows] == [
        ("proponent", "=1+1", ASKED["prompt"]),
        ("opponent", "=1+1", ASKED["prompt"]),
    ]
    assert json.loads(made[2])["proponent_ids"] == ["=1+1"]
