"""Passages as a reader sees them: unreadable characters made visible, long texts shortened, shared words marked.

Where it is known which tokens carry a passage's score, each is tinted by its share: four tones of either sign, relative
to the largest share of the passage, in classes ``p1`` to ``p4`` and ``n1`` to ``n4``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup, escape

from trackstar.tasks.numerics.words import spans
from trackstar.tasks.numerics.words import words as words_of

SHOWN_CHARACTERS = 340
SEARCHED_CHARACTERS = 1 << 17  # how far into a text a word worth showing is looked for
LEAD_CHARACTERS = 100  # of context before that word
COMMON_SHARE = 0.2
FEWEST_TEXTS = 20  # below this, how many texts a word occurs in says nothing

LONGEST_WORD = 24  # a cut moves at most this far to fall between words

NUM_TONES = 4
NAMED_SHARES = 3  # tokens of either sign that are named below a passage
SMALLEST_NAMED = 1 / 8  # of the largest share: the rest is neither tinted nor named
NAMED_CHARACTERS = 24

SPACE = re.compile(r"\s+")
UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Words:
    """What to mark for one query: words of its completion, and words of its prompt, each without the common ones."""

    answer: frozenset[str]
    shared: frozenset[str]

    @classmethod
    def of(cls, prompt: str, completion: str, *, common: AbstractSet[str]) -> "Words":
        joint = list(spans(prompt + completion))
        words = frozenset(words_of(completion)).union(word for word, _, stop in joint if stop > len(prompt))
        answer = words - common or words  # an answer of common words alone is still the answer
        return cls(answer=answer, shared=frozenset(word for word, _, _ in joint) - words - common)


class Token(NamedTuple):
    """The characters [start, stop) of a text, and their part in its score; a special token has no characters."""

    start: int
    stop: int
    share: float


class NamedShare(NamedTuple):
    """A token as it is named below a passage; the end of the text, a token without characters, as None."""

    text: str | None
    share: float


@dataclass(frozen=True)
class Passage:
    """Escaped HTML of what is shown, and how long the text really is if that is not all of it.

    Attributes:
        carriers: Tokens with the largest shares of either sign, strongest first; empty where shares are not known.
        shown_share: What the shown part has of the score.
    """

    html: Markup
    num_characters: int | None
    carriers: tuple[NamedShare, ...] = ()
    shown_share: float | None = None


def visible(text: str) -> str:
    """The text with control characters and halves of surrogate pairs replaced by U+FFFD; line ends and tabs stay."""
    return UNREADABLE.sub("\ufffd", text)


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """Words in more than a fifth of the texts: sharing them says nothing, in whatever language."""
    found = [set(words_of(text[:SEARCHED_CHARACTERS])) for text in texts]
    if len(found) < FEWEST_TEXTS:
        return frozenset()
    counts = Counter(word for words in found for word in words)
    return frozenset(word for word, count in counts.items() if count > COMMON_SHARE * len(found))


def passage(text: str, words: Words, tokens: Sequence[Token] = ()) -> Passage:
    """The part of a text around the first word of the answer, or the first shared word, with all such words marked."""
    start, end = 0, len(text)
    if len(text) > SHOWN_CHARACTERS:
        start = _start(text[:SEARCHED_CHARACTERS], words)
        end = _word_end(text, start + SHOWN_CHARACTERS)
    before, after = "… " if start else "", " …" if end < len(text) else ""
    html = before + mark(visible(text[start:end]), words, tones(tokens, start, end)) + after
    return Passage(
        html=html,
        num_characters=len(text) if len(text) > SHOWN_CHARACTERS else None,
        carriers=carriers(text, tokens),
        shown_share=sum(token.share for token in tokens if start <= token.start < end) if tokens else None,
    )


def mark(text: str, words: Words, toned: Sequence[int] = ()) -> Markup:
    """The escaped text with ``<mark>`` around shared words and ``<mark class="answer">`` around words of the answer."""
    openings = [""] * len(text)
    for word, start, stop in spans(text):
        if word in words.answer:
            openings[start:stop] = ['<mark class="answer">'] * (stop - start)
        elif word in words.shared:  # a character that another word gives to the answer stays there
            openings[start:stop] = [opening or "<mark>" for opening in openings[start:stop]]
    pieces = []
    for opening, run in groupby(range(len(text)), key=openings.__getitem__):
        positions = list(run)
        inside = _tinted(text, toned, positions[0], positions[-1] + 1)
        pieces.append(Markup(f"{opening}{{}}</mark>").format(inside) if opening else inside)
    return Markup("").join(pieces)


def tones(tokens: Sequence[Token], start: int, end: int) -> list[int]:
    """The tone of each character in [start, end), from -NUM_TONES to NUM_TONES; none where no share is known."""
    largest = max((abs(token.share) for token in tokens), default=0.0)
    if not largest > 0:
        return []
    shares = [0.0] * (end - start)
    for token in tokens:  # several tokens can have one character between them
        for position in range(max(token.start, start), min(token.stop, end)):
            shares[position - start] += token.share
    return [_tone(share / largest) for share in shares]


def carriers(text: str, tokens: Sequence[Token]) -> tuple[NamedShare, ...]:
    """The tokens with the largest shares of either sign, those that raise the score first."""
    largest = max((abs(token.share) for token in tokens), default=0.0)
    chosen = []
    for sign in (1, -1):
        strong = [token for token in tokens if sign * token.share > SMALLEST_NAMED * largest]
        chosen += sorted(strong, key=lambda token: -sign * token.share)[:NAMED_SHARES]
    return tuple(NamedShare(_name(text[token.start : token.stop]), token.share) for token in chosen)


def _tone(relative: float) -> int:
    size = min(NUM_TONES, int(abs(relative) * NUM_TONES) + 1) if abs(relative) > SMALLEST_NAMED else 0
    return size if relative > 0 else -size


def _name(text: str) -> str | None:
    return visible(text).strip()[:NAMED_CHARACTERS] or ("␣" if text else None)


def _tinted(text: str, toned: Sequence[int], start: int, end: int) -> Markup:
    """The escaped characters [start, end), neighbours of one tone together."""
    if not toned:
        return escape(text[start:end])
    pieces = []
    # A token often begins with the space before its word: that stays untinted.
    for tone, run in groupby(range(start, end), key=lambda position: toned[position] * (not text[position].isspace())):
        positions = list(run)
        part = escape(text[positions[0] : positions[-1] + 1])
        name = f"{'p' if tone > 0 else 'n'}{abs(tone)}"
        pieces.append(Markup('<i class="{}">{}</i>').format(name, part) if tone else part)
    return Markup("").join(pieces)


def _start(text: str, words: Words) -> int:
    """Where to begin so that the most telling word is shown with some context before it."""
    first_shared = 0
    for word, start, _ in spans(text):
        if word in words.answer:
            return _word_start(text, start - LEAD_CHARACTERS)
        if not first_shared and word in words.shared:
            first_shared = start
    return _word_start(text, first_shared - LEAD_CHARACTERS)


def _word_start(text: str, position: int) -> int:
    """The first beginning of a word at or soon after a position; the position itself where there is none."""
    if position <= 0:
        return 0
    space = SPACE.search(text, position - 1, position + LONGEST_WORD)
    return space.end() if space else position


def _word_end(text: str, position: int) -> int:
    """The last end of a word at or soon before a position; the position itself where there is none."""
    if position >= len(text):
        return len(text)
    spaces = list(SPACE.finditer(text, position - LONGEST_WORD, position + 1))
    return spaces[-1].start() if spaces else position
