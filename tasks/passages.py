"""Passages as a reader sees them: unreadable characters made visible, long texts shortened, shared words marked."""

import re
from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from markupsafe import Markup, escape

from tasks.numerics.bm25 import WORD, tokenize

SHOWN_CHARACTERS = 340
SEARCHED_CHARACTERS = 1 << 17  # how far into a text a word worth showing is looked for
LEAD_CHARACTERS = 100  # of context before that word
COMMON_SHARE = 0.2
FEWEST_TEXTS = 20  # below this, how many texts a word occurs in says nothing

LONGEST_WORD = 24  # a cut moves at most this far to fall between words

SPACE = re.compile(r"\s+")
UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Words:
    """What to mark for one query: words of its completion, and words of its prompt, each without the common ones."""

    answer: frozenset[str]
    shared: frozenset[str]

    @classmethod
    def of(cls, prompt: str, completion: str, *, common: AbstractSet[str]) -> "Words":
        words = frozenset(tokenize(completion))
        answer = words - common or words  # an answer of common words alone is still the answer
        return cls(answer=answer, shared=frozenset(tokenize(prompt)) - words - common)


@dataclass(frozen=True)
class Passage:
    """Escaped HTML of what is shown, and how long the text really is if that is not all of it."""

    html: Markup
    num_characters: int | None


def visible(text: str) -> str:
    """The text with control characters and halves of surrogate pairs replaced by U+FFFD; line ends and tabs stay."""
    return UNREADABLE.sub("\ufffd", text)


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """Words in more than a fifth of the texts: sharing them says nothing, in whatever language."""
    found = [set(tokenize(text[:SEARCHED_CHARACTERS])) for text in texts]
    if len(found) < FEWEST_TEXTS:
        return frozenset()
    counts = Counter(word for words in found for word in words)
    return frozenset(word for word, count in counts.items() if count > COMMON_SHARE * len(found))


def passage(text: str, words: Words) -> Passage:
    """The part of a text around the first word of the answer, or the first shared word, with all such words marked."""
    if len(text) <= SHOWN_CHARACTERS:
        return Passage(html=mark(visible(text), words), num_characters=None)
    start = _start(text[:SEARCHED_CHARACTERS], words)
    end = _word_end(text, start + SHOWN_CHARACTERS)
    before, after = "… " if start else "", " …" if end < len(text) else ""
    return Passage(html=before + mark(visible(text[start:end]), words) + after, num_characters=len(text))


def mark(text: str, words: Words) -> Markup:
    """The escaped text with ``<mark>`` around shared words and ``<mark class="answer">`` around words of the answer."""
    pieces, end = [], 0
    for match in WORD.finditer(text):
        word = match[0].lower()
        if word in words.answer or word in words.shared:
            opening = '<mark class="answer">' if word in words.answer else "<mark>"
            pieces += [escape(text[end : match.start()]), Markup(opening), escape(match[0]), Markup("</mark>")]
            end = match.end()
    return Markup("").join([*pieces, escape(text[end:])])


def _start(text: str, words: Words) -> int:
    """Where to begin so that the most telling word is shown with some context before it."""
    first_shared = 0
    for match in WORD.finditer(text):
        word = match[0].lower()
        if word in words.answer:
            return _word_start(text, match.start() - LEAD_CHARACTERS)
        if not first_shared and word in words.shared:
            first_shared = match.start()
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
