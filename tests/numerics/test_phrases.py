import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics.phrases import Phrases
from trackstar.tasks.numerics.words import normalise


def holds(text, *phrases):
    return Phrases({"any": phrases}).owners_in(text) == {"any"}


@pytest.mark.parametrize(
    ("phrase", "text", "is_there"),
    [
        ("Vienna", "She lives in VIENNA's (old) town", True),
        ("Vienna", "Viennas", False),
        ("Vienna", "Vienna_2", False),
        ("New York", "New\n  York", True),
        ("New York", "New-York", False),
        ("New York", "York New", False),
        ("C++", "in C++, today", True),
        ("C++", "C, C+ and CCC", False),
        ("C++", "a C++x", False),
        ("-5", "10-5", False),
        ("-5", "at -5 degrees", True),
        ("(c)", "a(c)", False),
        ("東京", "東京都", True),
        ("東京", "東\n京", True),
        ("東京", "京東", False),
        ("水", "飲み水を", True),
        ("Tシャツ", "白いTシャツを", True),
        ("กรุงเทพ", "กรุงเทพมหานคร", True),
        ("किताब", "किताबें", False),
        ("🎉", "party🎉", True),
        ("...", ".....", True),
        ("|", "a | b", True),
    ],
)
def test_a_phrase_is_found_as_a_run_of_whole_words_and_signs(phrase, text, is_there):
    assert holds(text, phrase) == is_there


def by_pattern(text, phrase):
    """As literal text with no word character beside it: what whole words are in ASCII without white space."""
    return re.search(rf"(?<!\w){re.escape(normalise(phrase))}(?!\w)", normalise(text)) is not None


@given(st.text("ab+. ", max_size=12), st.text("ab+.", min_size=1, max_size=4))
@settings(deadline=None, max_examples=500)
def test_a_phrase_without_white_space_is_found_where_a_pattern_with_word_boundaries_finds_it(text, phrase):
    assert holds(text, phrase) == by_pattern(text, phrase)


def test_each_owner_is_found_by_any_of_its_phrases():
    phrases = Phrases({"a": ["Wien", "Vienna"], "b": ["Graz"], "none": ["", "\u200d"]})
    assert phrases.owners_in("Vienna and Graz") == {"a", "b"}
    assert phrases.owners_in("Wien") == {"a"}
    assert phrases.owners_in("") == set()


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("." * 20_000 + "!", "." * 40_000 + "!?"),
        ("a " * 10_000 + "b", "a " * 40_000 + "b"),
        ("水" * 10_000 + "火", "水" * 40_000),
        ("." * 100, ("." * 99 + "a") * 400),
    ],
    ids=["dots", "words", "ideographs", "nearly"],
)
def test_a_repetitive_phrase_is_looked_for_in_time_linear_in_the_text(phrase, text):
    started = time.process_time()
    Phrases({"q": [phrase]}).owners_in(text)
    assert time.process_time() - started < 5
