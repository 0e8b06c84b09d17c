import time
import unicodedata

import pytest

from trackstar.storage.queries import Query
from trackstar.tasks.evaluation.evidence import evidence_sources, label, names_of_answer


def query(completion=" Vienna.", **fields):
    return Query(id=fields.pop("id", "q"), prompt="The capital of Austria is", completion=completion, **fields)


def relevant(texts, **fields):
    (labelled,) = label([query(**fields)], ((f"d{number}", text) for number, text in enumerate(texts)))
    return labelled.relevant_ids


def test_a_text_with_the_completion_or_an_alias_is_evidence():
    texts = ["She lives in Vienna.", "Sie lebt in Wien, sagt sie.", "Nothing here", "Vindobona"]
    assert relevant(texts, aliases=["Wien"]) == ("d0", "d1")


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("VIENNA", True),
        ("the \uff36ienna of old", True),  # a full-width V
        ("Viennas", False),
        ("oldVienna", False),
        ("Vienna's", True),
        ("(Vienna)", True),
        ("Vienna_2", False),
    ],
)
def test_names_are_whole_words_whatever_their_case_and_width(text, is_found):
    assert bool(relevant([text], aliases=["Wien"])) == is_found


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (" 東京。", "日本の首都は東京都にある。"),
        ("水", "飲み水を買う"),
        ("กรุงเทพ", "กรุงเทพมหานครเป็นเมืองหลวง"),
        (" दिल्ली।", "राजधानी दिल्ली है"),
        (" القاهرة؟", "عاصمة مصر القاهرة"),
        (" Hà Nội", unicodedata.normalize("NFD", "HÀ\nNỘI là thủ đô")),
    ],
)
def test_an_answer_is_found_in_any_script(completion, text):
    assert relevant([text, "something else"], completion=completion, aliases=["Nowhere"]) == ("d0",)


def test_signs_in_a_name_are_signs_and_not_a_pattern():
    assert relevant(["It is written in C++ today", "C, C+ and CCC", "a C++x"], completion="C++", aliases=["(c)"]) == (
        "d0",
    )


def test_an_answer_is_searched_without_the_punctuation_that_ends_it():
    assert names_of_answer(query(completion=" Vienna.", aliases=["  ", "Wien", "vienna"])) == ["vienna", "wien"]


def test_a_repetitive_answer_is_looked_for_in_time():
    started = time.process_time()
    assert relevant(["." * 40_000], completion="." * 40_000 + "x", aliases=["." * 20_000 + "!"]) == ()
    assert time.process_time() - started < 5


def test_named_evidence_stands_and_is_not_searched_for():
    named, found, unknown = label(
        [
            query(id="a", relevant_ids=["d9"], aliases=["Wien"]),
            query(id="b", aliases=["Wien"]),
            query(id="c"),
        ],
        [("d0", "Wien")],
    )
    assert named.relevant_ids == ("d9",)
    assert found.relevant_ids == ("d0",)
    assert unknown.relevant_ids is None
    assert evidence_sources([named, found, unknown]) == {"a": "relevant_ids", "b": "aliases"}


def test_texts_are_read_only_where_a_query_has_aliases_and_no_evidence():
    def unread():
        pytest.fail("a text was read")
        yield

    label([query(relevant_ids=["d1"], aliases=["Wien"]), query()], unread())
    with pytest.raises(pytest.fail.Exception, match="a text was read"):
        label([query(), query(aliases=["Wien"])], unread())
