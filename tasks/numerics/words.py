"""Words of any language, for all that compares texts by the words they share.

    word        letters and digits of a script that puts spaces between words, with their combining marks; underscores
    unit        a letter, with its marks, of a script that does not: Chinese, Japanese, Thai, Lao, Khmer, Burmese, …
    pictograph  an emoji
    sign        any other visible character

Texts are read after Unicode NFKC and case folding, without characters that show nothing: soft hyphens, joiners,
variation selectors. Where no space tells words apart, each pair of neighbouring units stands for a word, as does an
ideograph.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import regex

WORD, UNIT, PICTOGRAPH, SIGN = "word", "unit", "pictograph", "sign"
RUN = "run"  # of units

# Line_Break=SA: the scripts of South East Asia whose words only a dictionary tells apart.
_UNSPACED = r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{scx=Yiii}\p{LB=SA}]&&[\p{L}\p{Nl}]]"
_SPACED = rf"(?:[[\p{{L}}\p{{N}}_]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}_]--{_UNSPACED}]*)"
_PICTOGRAPH = r"(?:\p{RI}{2}|[\p{Extended_Pictographic}--[©®]])"
_VISIBLE = r"[^\s\p{Cc}\p{Cs}]"
_MARK = r"[\p{M}\uff9e\uff9f]"  # half-width Japanese sound marks become marks


def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.VERSION1)


_PIECE = _compiled(
    rf"(?P<{WORD}>{_SPACED})|(?P<{UNIT}>{_UNSPACED}\p{{M}}*)|(?P<{PICTOGRAPH}>{_PICTOGRAPH})|(?P<{SIGN}>{_VISIBLE})"
)
_WORD_OR_RUN = _compiled(rf"(?P<{WORD}>{_SPACED}|{_PICTOGRAPH})|(?P<{RUN}>(?:{_UNSPACED}\p{{M}}*)+)")
_UNIT = _compiled(rf"{_UNSPACED}\p{{M}}*")
# Latin, Greek and Cyrillic without marks, and punctuation: there ``re`` finds the same words, and sooner.
_NOT_PLAIN = _compiled(r"[^\x00-\u02af\u0370-\u0482\u048a-\u0523\u1e00-\u1fff\u2000-\u2027\u2030-\u205e\u20a0-\u20bf]")
_PLAIN_WORD = re.compile(r"\w+")
_IDEOGRAPH = _compiled(r"\p{Han}")
_LETTER_OF_A_WORD = _compiled(rf"[\p{{L}}--{_UNSPACED}]")
# A character and what normalisation may compose with it: marks, the vowels and last consonants of Hangul, and whatever
# shows nothing between them.
_CLUSTER = _compiled(
    r"(?s:.)[[\p{M}\p{Grapheme_Extend}\u1160-\u11ff\u314f-\u3163\uffc2-\uffdc\p{Default_Ignorable_Code_Point}]--\u200b]*"
)
_NOT_SPACE = _compiled(r"\S+")
_IGNORABLE = _compiled(r"[\p{Default_Ignorable_Code_Point}--\u200b]")
_SEPARATOR = _compiled(r"[\u200b™℠]")  # NFKC would make letters of the last two, at the end of a name
# Sorting marks takes the square of their number, and no letter of any language has thirty (UAX 15, stream-safe text).
_TOO_MANY_MARKS = _compiled(rf"({_MARK}{{30}}){_MARK}+")


class Piece(NamedTuple):
    """A word, unit, pictograph or sign, and where it is in the normalised text."""

    text: str
    kind: str
    start: int
    stop: int


class Span(NamedTuple):
    """A word, and the characters [start, stop) of a text that make it."""

    word: str
    start: int
    stop: int


def normalise(text: str) -> str:
    """The text as it is compared: NFKC, case folded, without what shows nothing."""
    if text.isascii():
        return text.lower()
    seen = _TOO_MANY_MARKS.sub(r"\1", _IGNORABLE.sub("", _SEPARATOR.sub(" ", text)))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())


def pieces(normal: str) -> Iterator[Piece]:
    """All that is visible in a normalised text."""
    for match in _PIECE.finditer(normal):
        yield Piece(match[0], match.lastgroup, match.start(), match.end())


def words(text: str) -> list[str]:
    """The words of a text in their order; nothing is stemmed or dropped."""
    normal = normalise(text)
    if not _NOT_PLAIN.search(normal):
        return _PLAIN_WORD.findall(normal)
    return [word for word, _, _ in _words(normal)]


def spans(text: str) -> Iterator[Span]:
    """The words of a text and where each of them is in it; neighbouring pairs share a unit."""
    for run in _NOT_SPACE.finditer(text):  # white space is what no normalisation reaches across
        normal, places = _aligned(run[0])
        for word, start, stop in _words(normal):
            yield Span(word, run.start() + places[start][0], run.start() + places[stop - 1][1])


def is_letter_of_a_word(character: str) -> bool:
    """Whether it is a letter of a script that puts spaces between words."""
    return _LETTER_OF_A_WORD.fullmatch(character) is not None


def cluster_start(text: str, position: int) -> int:
    """Where the character begins that normalisation may compose with the one at a position."""
    return next(match.start() for match in _CLUSTER.finditer(text) if match.end() > position)


def _words(normal: str) -> Iterator[tuple[str, int, int]]:
    """Words, pictographs, ideographs, pairs of neighbouring units, and units that have no neighbour: [start, stop)."""
    for match in _WORD_OR_RUN.finditer(normal):
        if match.lastgroup == WORD:
            yield match[0], match.start(), match.end()
            continue
        units = _UNIT.findall(match[0])
        places = list(accumulate(map(len, units), initial=match.start()))
        for unit, start, stop in zip(units, places, places[1:], strict=False):
            if len(units) == 1 or _IDEOGRAPH.match(unit):
                yield unit, start, stop
        for left, right, start, stop in zip(units, units[1:], places, places[2:], strict=False):
            yield left + right, start, stop


def _aligned(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The normalised text, and for each of its characters where the one it comes from begins and ends."""
    if text.isascii():
        return text.lower(), [(position, position + 1) for position in range(len(text))]
    parts, places = [], []
    for cluster in _CLUSTER.finditer(text):
        parts.append(normalise(cluster[0]))
        places += [cluster.span()] * len(parts[-1])
    return "".join(parts), places
