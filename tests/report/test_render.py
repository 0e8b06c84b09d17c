import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from trackstar.storage.results import RESULT_SCHEMA
from trackstar.tasks.evaluation.metrics import Pool, evaluate
from trackstar.tasks.report.render import (
    Curvature,
    Explanation,
    Prediction,
    ReportData,
    decimal,
    fact,
    render_report,
    signed,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)//",
    "</style></head><body onload=alert(3)>",
    '"><img src=x onerror=alert(4)>',
    "' onmouseover='alert(5)",
    "<a href='javascript:alert(6)'>here</a>",
    "<!-- <iframe src=https://example.org> -->",
    "{{ 7 * 7 }} {% include 'report.css' %} {# #}",
    "]]> <svg/onload=alert(7)> &lt;script&gt; &#60;script&#62;",
    "\ud800\udfff half \x00 characters \x1b[31m \u202e reversed \u2028 lines \u2029",
    "<mark>" * 40,
    "y" * (1 << 20),
]


@dataclass(frozen=True)
class Query:
    id: str
    prompt: str
    completion: str
    relevant_ids: tuple[str, ...] | None = None


MARKUP_OF_TEXT = {"mark", "i"}  # follows words and tokens, which tame texts have others of


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and what its scripts and style hold."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.embedded, self._inside = [], "", {}, None  # embedded: (tag, type) to content
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = (tag, dict(attributes).get("type")) if tag in {"script", "style"} else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.embedded[self._inside] = self.embedded.get(self._inside, "") + data
        else:
            self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"the page holds a comment: {data[:80]}")

    def having(self, css_class):
        return [tag for tag, attributes in self.elements if css_class in (attributes.get("class") or "").split()]


def ranked_by(scores, *, method, query_ids, candidate_ids):
    """The result table of all candidates, from the [q n] scores of a method."""
    rows = [
        (query_id, method, kind, rank, candidate_ids[at], float(of_query[at]))
        for query_id, of_query in zip(query_ids, scores, strict=True)
        for kind, order in (("proponent", np.argsort(-of_query)), ("opponent", np.argsort(of_query)))
        for rank, at in enumerate(order, start=1)
    ]
    return pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")


def page_of(texts, *, labels, **changes):
    """A report of two methods on two queries in which every foreign string is one of the labels or the texts."""
    ids = [f"{labels[index % len(labels)]}{index}" for index in range(len(texts))]
    names = [visible_to_polars(name) for name in ids]
    queries = [
        Query(visible_to_polars(labels[0]), labels[1], labels[2], (names[0],)),
        Query(visible_to_polars(labels[3]) + "2", texts[-1], labels[4]),
    ]
    scores = np.random.default_rng(0).normal(size=(2, len(texts)))
    tables = [
        ranked_by(sign * scores, method=name, query_ids=[query.id for query in queries], candidate_ids=names)
        for name, sign in zip((labels[5], "other"), (1, -1), strict=True)
    ]
    frame = pl.concat(tables)
    patch = frame.filter(pl.col("kind") == "proponent").select(
        "query_id", "method", "candidate_id", probability_change="score"
    )
    data = {
        "model": labels[6],
        "corpus": labels[7],
        "queries": queries,
        "proponents": frame,
        "texts": dict(zip(names, texts, strict=True)),
        "metrics": evaluate(frame, queries, tail_patch=patch),
        "tail_patch": patch,
        "predictions": {queries[0].id: Prediction(probability=0.25, answer=labels[8])},
        "facts": {labels[0]: labels[1], "passages": 12345},
        "costs": {labels[5]: {labels[2]: labels[3]}},
        "explanation": explanation(labels[5], queries, names, texts),
        "curvature": Curvature(mixing_weight=0.9, damping=0.01, crossing=2, spectra={labels[4]: [3.0, 2.0, 1.0]}),
        "num_quarantined": 3,
    }
    return render_report(ReportData(**data | changes))


def explanation(method, queries, names, texts):
    """Every text read in tokens of three characters, beginning before the first one."""
    tokens = [
        (query.id, name, start, start + 3, (-1.0) ** start * start)
        for query in queries
        for name, text in zip(names, texts, strict=True)
        for start in (0, *range(0, min(len(text), 400), 3))
    ]
    columns = ["query_id", "candidate_id", "start", "stop", "share"]
    ends = {"query_id": [query.id for query in queries], "low": -3.0, "high": 3.0}
    return Explanation(
        method=method,
        tokens=pl.DataFrame(tokens, schema=columns, orient="row"),
        histograms=pl.DataFrame({**ends, "counts": [[1, 5, 2]] * len(queries)}),
        evidence=pl.DataFrame({"query_id": [queries[0].id], "candidate_id": [names[0]], "score": [0.5]}),
    )


def visible_to_polars(text):
    """Ids come from Parquet and polars, which hold no halves of characters."""
    return text.encode("utf-8", errors="replace").decode()


def tame(texts):
    """Texts of the same lengths without a word or a character that means anything."""
    return ["é" * len(text) for text in texts]


@pytest.fixture(scope="module")
def hostile():
    return page_of(HOSTILE, labels=HOSTILE[:10])


def table(rows):
    return pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")


QUERY = Query("q1", "The capital of Chad is", " N'Djamena", ("d2",))
ROWS = [
    ("q1", "trackstar", "proponent", 1, "d2", 0.5),
    ("q1", "trackstar", "proponent", 2, "d1", 0.25),
    ("q1", "trackstar", "opponent", 1, "d3", -0.75),
    ("q1", "bm25", "proponent", 1, "d1", 17.25),
    ("q1", "bm25", "proponent", 2, "d3", 1.5),
]
TEXTS = {"d1": "Chad is large.", "d2": "Ministers meet in N'Djamena.", "d3": "A fox."}
SMALL = {"model": "m", "corpus": "c", "queries": [QUERY], "proponents": table(ROWS), "texts": TEXTS}


METRICS = evaluate(SMALL["proponents"], [QUERY])


def small(**changes):
    return Page(render_report(ReportData(**SMALL | changes)))


def test_a_hostile_corpus_adds_no_element_and_no_attribute(hostile):
    def structure(html):
        elements = Page(html).elements
        return [(tag, sorted(attributes)) for tag, attributes in elements if tag not in MARKUP_OF_TEXT]

    assert structure(hostile) == structure(page_of(tame(HOSTILE), labels=tame(HOSTILE[:10])))


def test_nothing_in_the_page_runs_links_out_or_loads(hostile):
    elements = Page(hostile).elements
    assert [attributes.get("type") for tag, attributes in elements if tag == "script"] == ["application/json", None]
    assert not {tag for tag, _ in elements} & {"img", "iframe", "object", "embed", "base", "link", "image", "use"}
    names = {name for _, attributes in elements for name in attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "srcset", "style", "action"})
    links = [attributes["href"] for _, attributes in elements if "href" in attributes]
    assert links
    assert all(re.fullmatch(r"#(q\d+|queries)", link) for link in links)


def test_a_hostile_corpus_is_shown_as_the_text_it_is(hostile):
    text = Page(hostile).text
    assert text.count("alert(4)") > 2
    for shown in HOSTILE[:6]:
        assert shown in text
    assert "{{ 7 * 7 }}" in text
    assert "\ufffd[31m" in text


def test_the_page_encodes_and_holds_no_control_characters(hostile):
    assert hostile.encode("utf-8").decode("utf-8") == hostile
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", hostile)


def test_data_for_the_script_is_json_that_cannot_end_its_element(hostile):
    content = Page(hostile).embedded["script", "application/json"]
    assert not set(content) & set("<>&\u2028\u2029")
    entries = json.loads(content)
    assert HOSTILE[1].lower() in entries[0]["text"]
    assert [entry["evidence"] for entry in entries] == [True, False]


def test_a_text_of_a_megabyte_is_shortened_and_says_so(hostile):
    assert "… 1,048,576 characters" in hostile
    assert len(hostile) < 200_000


def test_the_policy_admits_exactly_the_style_and_the_script_of_the_page(hostile):
    page = Page(hostile)
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    for directive, element in (("script-src", ("script", None)), ("style-src", ("style", None))):
        digest = base64.b64encode(hashlib.sha256(page.embedded[element].encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"


def test_the_same_data_gives_the_same_page(hostile):
    assert page_of(HOSTILE, labels=HOSTILE[:10]) == hostile


def test_a_report_needs_no_more_than_queries_rankings_and_texts():
    page = small()
    assert not {"summary", "run", "prediction"} & {
        name for name in ("summary", "run", "prediction") if page.having(name)
    }
    assert "Ministers meet in N'Djamena." in page.text


def test_a_run_without_any_evidence_asks_nothing_about_it():
    page = small(queries=[Query("q1", "p", "c")])
    assert not page.having("verdict")
    assert not page.having("tag")
    assert not [tag for tag, _ in page.elements if tag == "select"]


def test_a_report_without_any_evidence_says_why_there_are_no_retrieval_metrics():
    queries = [Query("q1", "p", "c", relevant_ids=())]
    metrics = evaluate(SMALL["proponents"], queries, evidence={"q1": "aliases"})
    page = small(queries=queries, metrics=metrics)
    assert "None of the 1 queries has evidence (1 with aliases: no text holds the answer or one of them)" in page.text
    assert "has evidence" not in small().text


def test_a_query_that_retrieved_nothing_says_so():
    page = small(queries=[QUERY, Query("q2", "What?", " That")])
    assert page.text.count("Nothing retrieved.") == 2


def test_passages_that_state_the_fact_are_named_and_the_rank_of_the_first_is_given():
    page = small()
    assert page.having("stated") == ["li"]
    assert "fact at rank 1" in page.text
    assert "fact not in first 2" in page.text


def test_words_of_the_answer_and_of_the_prompt_are_marked_apart():
    html = render_report(ReportData(**SMALL))
    assert 'Ministers meet in <mark class="answer">N</mark>&#39;<mark class="answer">Djamena</mark>.' in html
    assert "<mark>Chad</mark> <mark>is</mark> large." in html


def test_a_passage_names_the_other_methods_that_rank_it_among_their_proponents():
    page = small()
    assert page.text.count("№") == 4  # one of them in the list of what influences and does not state
    assert "d1№\xa01 in bm25" in page.text
    assert "d1№\xa02 in trackstar" in page.text
    assert "d3№\xa02 in bm25" in page.text  # an opponent of trackstar; nobody's opponent is counted as found


def test_opponents_are_folded_away_and_only_where_there_are_any():
    page = small()
    assert page.having("opponents") == ["details"]
    assert "−0.750" in page.text


def test_only_as_many_as_asked_for_are_shown():
    assert len(small(num_proponents=1, num_opponents=1).having("hit")) == 3


def test_tail_patch_is_shown_with_its_proponent():
    measured = pl.DataFrame(
        [("q1", "trackstar", "d2", 0.125), ("q1", "bm25", "d1", -0.5)],
        schema=["query_id", "method", "candidate_id", "probability_change"],
        orient="row",
    )
    page = small(tail_patch=measured)
    assert len(page.having("change")) == 2
    assert "tail-patch +0.125" in page.text
    assert "tail-patch −0.500" in page.text


def test_the_best_method_is_marked_and_a_tie_of_all_is_not():
    page = small(metrics=evaluate(SMALL["proponents"], [QUERY]))
    assert len(page.having("best")) == 4  # mrr, hit, recall and precision, all trackstar's
    tied = small(metrics=evaluate(table([row for row in ROWS if row[1] == "trackstar"]), [QUERY]))
    assert not tied.having("best")


def test_differences_that_exclude_zero_stand_out():
    page = small(metrics=evaluate(SMALL["proponents"], [QUERY]))
    assert len(page.having("clear")) == 4
    assert "Difference from trackstar" in page.text


def test_how_the_scores_were_made_is_told():
    page = small(
        facts={"Tokens": 1234567, "Unit norm": True, "Share": 0.1234567},
        curvature=Curvature(mixing_weight=0.9, facts={"Rank of R_eval": "7 of 9"}, spectra={"λ R_eval": [1.0, 0.1]}),
        costs={"trackstar": {"time": "41 s"}, "bm25": {"memory": "1 GB"}},
        num_quarantined=3,
    )
    for expected in ("1,234,567", "yes", "0.123457", "Mixing weight λ", "λ R_eval", "7 of 9", "41 s", "1 GB"):
        assert expected in page.text
    assert page.having("warn") == ["dd"]
    assert "Damping" not in page.text


def test_a_prediction_is_shown_where_there_is_one():
    page = small(predictions={"q1": Prediction(probability=0.125)})
    assert "Probability of the completion 0.125" in page.text
    assert "The model says" not in page.text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (decimal(-0.0625), "−0.062"),
        (decimal(17.256), "17.26"),
        (decimal(12345.6), "12,346"),
        (signed(0.5), "+0.500"),
        (signed(-0.5), "−0.500"),
        (fact(-1234), "−1,234"),
        (fact(1e-7), "1e−07"),
        (fact(False), "no"),
    ],
)
def test_numbers_are_set_with_a_true_minus_and_separators(shown, expected):
    assert shown == expected


def test_each_token_of_a_proponent_is_tinted_and_the_strongest_are_named_with_their_shares():
    read = [("q1", "d2", 0, 9, 0.1), ("q1", "d2", 9, 14, -0.4), ("q1", "d2", 0, 0, 0.2), ("q1", "d1", 0, 4, 1.0)]
    tokens = pl.DataFrame(read, schema=["query_id", "candidate_id", "start", "stop", "share"], orient="row")
    html = render_report(ReportData(**SMALL | {"explanation": Explanation(method="trackstar", tokens=tokens)}))
    page = Page(html)
    assert '<i class="p2">Ministers</i> <i class="n4">meet</i> in' in html
    assert "end of text +0.200" in page.text
    assert "Ministers +0.100" in page.text
    assert "meet −0.400" in page.text
    # d1 is a proponent of bm25 too, whose score has no tokens
    assert html.count('<i class="p4"><') == html.count("Chad +1.000") == 0
    assert page.text.count("Chad +1.000") == 1


def test_what_influences_without_stating_and_what_states_without_influencing_are_set_apart():
    rows = [("q1", "trackstar", "proponent", 1, "d1", 0.5), ("q1", "bm25", "proponent", 4, "d2", 2.0)]
    page = small(
        proponents=table(rows),
        explanation=Explanation(
            method="trackstar",
            histograms=pl.DataFrame({"query_id": ["q1"], "low": [0.0], "high": [1.0], "counts": [[75, 20, 0, 5]]}),
            evidence=pl.DataFrame({"query_id": ["q1"], "candidate_id": ["d2"], "score": [0.3]}),
        ),
    )
    influences, states = page.text.split("Influences but does not state")[1].split("States but does not influence")
    assert "Chad is large." in influences
    for expected in ("beyond", "0.300", "above 75.0 % of all", "№\xa04 in bm25", "Ministers meet in N'Djamena."):
        assert expected in states
    assert "trackstar scores of 100 candidates" in page.text
    assert "99 % at most 1.000" in page.text
    assert "1 that state the fact" in page.text


def test_evidence_that_is_not_in_the_corpus_is_said_to_be_missing():
    page = small(queries=[Query("q1", "The capital", " N'Djamena", ("d2", "lost"))])
    assert "1 of the passages named as evidence are not in the corpus" in page.text


def test_a_step_on_what_states_the_fact_is_told_from_a_step_on_what_does_not():
    measured = [("q1", "trackstar", "d2", 0.5), ("q1", "trackstar", "d1", 0.25), ("q1", "trackstar", "d3", 0.75)]
    columns = ["query_id", "method", "candidate_id", "probability_change"]
    changes = pl.DataFrame(measured, schema=columns, orient="row")
    page = small(metrics=evaluate(SMALL["proponents"], [QUERY], tail_patch=changes), tail_patch=changes)
    text = " ".join(page.text.split("what a training step on each")[1].split())
    assert "+0.500+0.500 to +0.500 · 1 passages" in text
    assert "+0.500+0.500 to +0.500 · 2 passages" in text


def test_of_many_methods_the_well_known_come_first_and_the_last_show_a_few_passages_only():
    names = ["a", "b", "c", "d", "dense", "bm25", "trackstar"]
    rows = [("q1", name, "proponent", rank, f"d{rank}", 1.0 / rank) for name in names for rank in range(1, 7)]
    texts = {f"d{rank}": f"text {rank}" for rank in range(1, 7)}
    page = small(proponents=table(rows), texts=texts, queries=[Query("q1", "p", "c")])
    labels = [attributes["aria-label"] for tag, attributes in page.elements if attributes.get("class") == "method"]
    assert labels == ["trackstar", "bm25", "dense", "a", "b", "c", "d"]
    assert len(page.having("hit")) == 4 * 6 + 3 * 3


def test_where_evidence_comes_from_is_said_beside_the_numbers():
    page = small(metrics=evaluate(SMALL["proponents"], [QUERY], evidence={"q1": "aliases"}))
    assert "known from the answer, or another name of it, found in the passage (1 queries)." in page.text
    assert "known from the queries’ own relevant ids (1 queries)." in small(metrics=METRICS).text
    facts = {"model": "nli", "digest": "0123456789abcdef", "threshold": 0.7, "depth": 10}
    pool = Pool(**facts, num_queries=1, num_documents=1234, num_evidence=56)
    judged = evaluate(SMALL["proponents"], [QUERY], evidence={"q1": "entailment"}).model_copy(update={"pool": pool})
    page = small(metrics=judged)
    assert "known from an entailment model that read the pool (1 queries)." in page.text
    assert "“nli” (0123456789ab) judged the pool alone, the first 10 of every method: 1,234 passages" in page.text
    assert "of which 56 state the fact with at least 0.7" in page.text
