import pytest

from trackstar.tasks.report.passages import (
    SHOWN_CHARACTERS,
    NamedShare,
    Token,
    Words,
    common_words,
    mark,
    passage,
    tones,
    visible,
)

WORDS = Words(answer=frozenset({"kabul"}), shared=frozenset({"afghanistan"}))


def test_shared_words_are_marked_whatever_their_case_and_the_rest_is_escaped():
    assert mark("<b>KABUL</b> & Afghanistan", WORDS) == (
        '&lt;b&gt;<mark class="answer">KABUL</mark>&lt;/b&gt; &amp; <mark>Afghanistan</mark>'
    )


def test_only_whole_words_are_marked():
    assert "<mark" not in mark("Kabuli afghanistans", WORDS)


def test_words_that_no_space_parts_are_marked_by_what_they_share():
    words = Words.of("日本の首都は", "東京", common=frozenset())
    assert mark("東京はラーメンの首都", words) == ('<mark class="answer">東京</mark>はラーメン<mark>の首都</mark>')


def test_a_word_is_marked_whatever_its_form_width_and_invisible_characters():
    words = Words(answer=frozenset({"café"}), shared=frozenset({"wien"}))
    assert mark("Cafe\u0301 Ｗｉ\u00adｅｎ", words) == (
        '<mark class="answer">Cafe\u0301</mark> <mark>Ｗｉ\u00adｅｎ</mark>'
    )


def test_a_word_that_prompt_and_completion_share_is_of_the_answer():
    assert Words.of("The lan", "tern", common=frozenset()).answer == {"tern", "lantern"}


def test_a_word_in_every_text_is_not_worth_marking():
    texts = [f"the passage about item{index}" for index in range(30)]
    assert common_words(texts) == {"the", "passage", "about"}
    words = Words.of("Tell the item3", " the item4", common=common_words(texts))
    assert words == Words(answer=frozenset({"item4"}), shared=frozenset({"tell", "item3"}))


def test_an_answer_of_common_words_alone_is_still_marked():
    assert Words.of("who", " the the", common=frozenset({"the"})).answer == {"the"}


def test_few_texts_have_no_common_words():
    assert common_words(["the cat", "the dog"]) == frozenset()


def test_a_short_text_is_shown_whole():
    shown = passage("Kabul lies high.", WORDS)
    assert (shown.html, shown.num_characters) == ('<mark class="answer">Kabul</mark> lies high.', None)


def test_a_long_text_is_shown_around_the_answer_and_cut_between_words():
    text = "once upon " * 500 + "in Afghanistan " + "there was " * 500 + "Kabul " + "and then " * 500
    shown = passage(text, WORDS)
    assert '<mark class="answer">Kabul</mark>' in shown.html
    assert shown.num_characters == len(text)
    inner = shown.html.striptags().removeprefix("… ").removesuffix(" …")
    assert len(inner) <= SHOWN_CHARACTERS
    assert f" {inner} " in f" {text} "
    assert inner.split()[0] in {"there", "was"}
    assert inner.split()[-1] in {"and", "then"}


def test_a_long_text_without_any_shared_word_is_shown_from_its_beginning():
    shown = passage("lorem ipsum " * 1000, WORDS)
    assert shown.html.startswith("lorem")
    assert shown.html.endswith(" …")


@pytest.mark.parametrize("text", ["x" * (1 << 20), "Kabul" + "x" * (1 << 20), " " * (1 << 20), "<" * (1 << 20)])
def test_a_text_without_places_to_cut_is_cut_all_the_same(text):
    shown = passage(text, WORDS)
    assert shown.num_characters == len(text)
    assert len(shown.html.unescape()) < 2 * SHOWN_CHARACTERS


def test_unreadable_characters_become_visible_and_the_text_encodes():
    text = visible("a\x00b\ud800c\x1b[31m\udfffd\u0085e\n\tf 😀")
    assert text == "a\ufffdb\ufffdc\ufffd[31m\ufffdd\ufffde\n\tf 😀"
    assert text.encode()


TOKENS = [Token(0, 0, 0.01), Token(0, 5, 0.4), Token(5, 10, -0.1), Token(10, 15, 0.02), Token(15, 16, 0.0)]


def test_tokens_are_tinted_by_sign_and_size_and_marks_stay_around_them():
    shown = passage("Kabul lies high.", WORDS, TOKENS)
    assert shown.html == '<mark class="answer"><i class="p4">Kabul</i></mark> <i class="n2">lies</i> high.'


def test_the_strongest_tokens_of_either_sign_are_named():
    shown = passage("Kabul lies high.", WORDS, TOKENS)
    assert shown.carriers == (NamedShare("Kabul", 0.4), NamedShare("lies", -0.1))
    beginning = passage("Kabul", WORDS, [Token(0, 0, 0.5), Token(0, 5, 0.1)])
    assert beginning.carriers == (NamedShare(None, 0.5), NamedShare("Kabul", 0.1))


def test_a_mark_that_cuts_a_token_keeps_the_tint_on_both_sides():
    html = mark("<Kabul>", WORDS, tones([Token(0, 7, -1.0)], 0, 7))
    inner = '<i class="n4">{}</i>'
    assert html == (
        inner.format("&lt;") + '<mark class="answer">' + inner.format("Kabul") + "</mark>" + inner.format("&gt;")
    )


def test_tokens_that_share_a_character_tint_it_together():
    halves = [Token(0, 1, 0.25), Token(0, 1, 0.25), Token(1, 2, 0.25), Token(2, 3, 0.5)]
    assert tones(halves, 0, 3) == [4, 3, 4]
    assert tones([], 0, 2) == tones([Token(0, 1, 0.0)], 0, 2) == []


def test_a_long_text_says_how_much_of_the_score_is_in_the_part_that_is_shown():
    text = "word " * 1000
    tokens = [Token(5 * n, 5 * n + 4, 0.001) for n in range(1000)]
    shown = passage(text, WORDS, tokens)
    assert shown.shown_share == pytest.approx(0.001 * len(shown.html.striptags().removesuffix(" …").split()))
    assert sum(token.share for token in tokens) == pytest.approx(1.0)
