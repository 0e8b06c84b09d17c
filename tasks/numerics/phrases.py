"""Which phrases a text holds, in time linear in the text: a phrase is found as a run of whole words and signs.

A text is written as one line, its pieces between boundaries, and a phrase is looked for in it as a string:

    "C++, 東京都"      open c closed + touching + touching , open 東 open 京 open 都 open

A boundary is closed where a word and a sign touch, touching where two signs do, open elsewhere: white space of any kind
and amount is the same to it, and around a unit of a script that needs none it makes no difference. A phrase that begins
or ends with a sign has no closed boundary there, so that neither "C++" is in "C++x" nor "-5" in "10-5".
"""

from collections.abc import Hashable, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from trackstar.tasks.numerics.words import SIGN, WORD, Piece, normalise, pieces

# Control characters are no pieces. From either side, a touching boundary looks like an open one.
_LIMIT, _OPEN, _TOUCHING, _CLOSED = "\x00", "\x01", "\x01\x02\x01", "\x03"


class _Phrase(NamedTuple):
    line: str
    longest: str  # of its pieces: a text without it has no need to be cut into pieces
    owner: Hashable


class Phrases:
    """The phrases of some owners, to be looked for together."""

    def __init__(self, phrases_of: Mapping[Hashable, Iterable[str]]) -> None:
        self._phrases = [
            _Phrase(_needle(found), max((piece.text for piece in found), key=len), owner)
            for owner, phrases in phrases_of.items()
            for phrase in phrases
            if (found := list(pieces(normalise(phrase))))
        ]

    def owners_in(self, text: str) -> set[Hashable]:
        """The owners of the phrases that a text holds."""
        normal = normalise(text)
        possible = [phrase for phrase in self._phrases if phrase.longest in normal]
        if not possible:
            return set()
        line = f"{_OPEN}{_line(list(pieces(normal)))}{_OPEN}"
        return {phrase.owner for phrase in possible if phrase.line in line}


def _needle(found: list[Piece]) -> str:
    first, last = (_OPEN if piece.kind == SIGN else "" for piece in (found[0], found[-1]))
    return f"{first}{_line(found)}{last}"


def _line(found: list[Piece]) -> str:
    """The pieces, each between limits, with the boundaries between them."""
    boundaries = [_boundary(left, right) for left, right in pairwise(found)]
    parts = [f"{_LIMIT}{piece.text}{_LIMIT}{after}" for piece, after in zip(found, [*boundaries, ""], strict=True)]
    return "".join(parts)


def _boundary(left: Piece, right: Piece) -> str:
    kinds = {left.kind, right.kind}
    if left.stop < right.start or not kinds <= {WORD, SIGN}:
        return _OPEN
    return _TOUCHING if kinds == {SIGN} else _CLOSED
