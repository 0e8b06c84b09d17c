import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics.words import cluster_start, is_letter_of_a_word, normalise, pieces, spans, words

# Characters at which languages differ: marks, joiners, scripts without spaces, widths, emoji, controls.
CHARACTERS = st.sampled_from(
    "aZ9_é \n-'’.\u0301\u0323ßİΣſﬁ½™\u00ad\u200b\u200d\x00"  # Latin, marks, compatibility forms, what shows nothing
    "क\u093fतمُحㄱㅏ\u1100\u1161\u11a8한가東京あアーｶﾞกำเខ\u17d2រ🎉👍🏽🇫🇷❤\ufe0f"
)
TEXTS = st.text(CHARACTERS, max_size=40)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
@settings(deadline=None)
def test_words_of_ascii_are_runs_of_word_characters_in_lower_case(text):
    assert words(text) == re.findall(r"\w+", text.lower())


@given(st.text("abcÄéñß çœøπйЖ’“–€_ 0.-", max_size=60))
@settings(deadline=None)
def test_words_of_latin_greek_and_cyrillic_are_runs_of_word_characters_case_folded(text):
    assert words(text) == re.findall(r"\w+", text.casefold())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में किताब", ["हिन्दी", "में", "किताब"]),
        ("مُحَمَّد رسول", ["مُحَمَّد", "رسول"]),
        (unicodedata.normalize("NFD", "Việt Nam"), ["việt", "nam"]),
        ("서울은 한국의 수도", ["서울은", "한국의", "수도"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("Ｗｉｅｎ ﬁne", ["wien", "fine"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("co\u00adoperate Windows™", ["cooperate", "windows"]),
    ],
)
def test_a_word_keeps_its_marks_whatever_its_width_case_and_form(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ひらがな", ["ひら", "らが", "がな"]),
        ("東京都", ["東", "京", "都", "東京", "京都"]),
        ("食べる", ["食", "食べ", "べる"]),
        ("ラーメン", ["ラー", "ーメ", "メン"]),
        ("ｶﾞｲﾄﾞ", ["ガイ", "イド"]),
        ("ไทย", ["ไท", "ทย"]),
        ("ລາວ", ["ລາ", "າວ"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("水", ["水"]),
        ("あ い", ["あ", "い"]),
        ("ไทย\u200bลาว", ["ไท", "ทย", "ลา", "าว"]),
    ],
)
def test_where_no_space_tells_words_apart_pairs_of_neighbours_and_ideographs_stand_for_them(text, expected):
    assert words(text) == expected


def test_a_change_of_script_ends_a_word():
    assert words("Tシャツ") == ["t", "シャ", "ャツ"]
    assert words("iPhone手機2020年") == ["iphone", "手", "機", "手機", "2020", "年"]
    assert words("Die HAUPTSTADT von Österreich: Wien (1,9 Mio.) – 東京_2020!") == [
        *("die", "hauptstadt", "von", "österreich", "wien", "1", "9", "mio", "東", "京", "東京", "_2020")
    ]


def test_an_emoji_is_a_word_and_another_sign_is_none():
    assert words("party🎉 ❤️ 👍🏽 🇫🇷🇩🇪 © + $ → •") == ["party", "🎉", "❤", "👍", "🇫🇷", "🇩🇪"]


@given(TEXTS)
@settings(deadline=None)
def test_words_do_not_depend_on_the_normal_form_a_text_is_written_in(text):
    forms = {tuple(words(unicodedata.normalize(form, text))) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len(forms - {tuple(words(text))}) <= ("™" in text)  # which compatibility forms spell as letters


@given(TEXTS)
@settings(deadline=None)
def test_what_is_normalised_stays_as_it_is(text):
    assert normalise(normalise(text)) == normalise(text)


@given(TEXTS)
@settings(deadline=None)
def test_spans_are_those_of_the_words_in_the_text(text):
    found = list(spans(text))
    assert sorted(span.word for span in found) == sorted(words(text))
    for span in found:
        assert 0 <= span.start < span.stop <= len(text)
        assert span.word in normalise(text[span.start : span.stop])


@given(TEXTS)
@settings(deadline=None)
def test_pieces_are_all_that_is_visible(text):
    normal = normalise(text)
    left = re.sub(r"[\s\x00]", "", normal)
    assert "".join(piece.text for piece in pieces(normal)) == left
    assert all(normal[piece.start : piece.stop] == piece.text for piece in pieces(normal))


@pytest.mark.parametrize(
    "text",
    [
        "." * 200_000,
        "a" + "\u0315\u0300" * 100_000,
        "ﾞ\u0300" * 100_000,
        "東" * 100_000,
        "\u0301" * 200_000,
        "🇫" * 99_999,
    ],
    ids=["dots", "marks", "sound marks", "ideographs", "marks alone", "halves of flags"],
)
def test_the_words_of_a_hostile_text_are_found_in_time(text):
    started = time.process_time()
    words(text)
    list(spans(text))
    list(pieces(normalise(text)))
    assert time.process_time() - started < 20  # 23 s is what sorting the marks alone takes without a limit


def test_letters_are_of_a_word_where_spaces_tell_words_apart():
    assert all(map(is_letter_of_a_word, "aÉжहع한"))
    assert not any(map(is_letter_of_a_word, "1_-東あก "))


def test_a_cluster_begins_with_the_letter_that_carries_the_marks():
    assert [cluster_start("xe\u0301y", position) for position in range(4)] == [0, 1, 1, 3]
    assert cluster_start("\u1100\u1161\u11a8", 2) == 0
