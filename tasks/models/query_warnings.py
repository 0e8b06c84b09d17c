"""What a person should know of how a query was read: a token, a word or a special token is not what it looks like."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from trackstar.storage.queries import Query
from trackstar.tasks.numerics.words import cluster_start, is_letter_of_a_word

NAMED_QUERIES = 3  # that the summary of a query set names for each kind
SHOWN_CHARACTERS = 12  # of a side of a border
LONGEST_TOKEN = 40


class Kind(StrEnum):
    """What was found, and what was done about it."""

    CROSSING = (
        "the first token of the completion holds the end of the prompt too, so its loss counts with the completion's"
    )
    ONE_WORD = (
        "no space is between prompt and completion, which are read as one word; begin the completion with a space if "
        "it is a word of its own"
    )
    TWICE = "the prompt spells the token that the tokenizer puts before it, so the model reads it twice; leave it out"
    SPELLED = "the text spells a special token, which is read as that token and not as text"


class QueryWarning(NamedTuple):
    """What was found, and the text in which it was found, quoted."""

    kind: Kind
    where: str


class SpecialToken(NamedTuple):
    """A special token that a text spells, and whether the tokenizer puts the same one before the text."""

    text: str
    is_repeated: bool


def query_warnings(query: Query, *, crossing: str | None, spelled: Iterable[SpecialToken]) -> tuple[QueryWarning, ...]:
    """What is to be said of a query.

    Args:
        crossing: The text of a token that holds characters of both prompt and completion, if there is one.
        spelled: The special tokens that it spells.
    """
    found = [QueryWarning(Kind.TWICE if of.is_repeated else Kind.SPELLED, _quoted(of.text)) for of in spelled]
    if crossing is not None:
        found.append(QueryWarning(Kind.CROSSING, _quoted(crossing)))
    if _meet_within_a_word(query):
        sides = f"{query.prompt[-SHOWN_CHARACTERS:]}|{query.completion[:SHOWN_CHARACTERS]}"
        found.append(QueryWarning(Kind.ONE_WORD, _quoted(sides)))
    return tuple(dict.fromkeys(found))


def sentence(warning: QueryWarning) -> str:
    """Of one query."""
    return f"{warning.where}: {warning.kind}"


def summary(warnings_of: Mapping[str, Sequence[QueryWarning]]) -> list[str]:
    """One sentence a kind, which names the first queries and counts the rest.

    Args:
        warnings_of: Query id to what is to be said of it.
    """
    found = [(kind, query_id, where) for query_id, warnings in warnings_of.items() for kind, where in warnings]
    sentences = []
    for kind, group in groupby(sorted(found, key=lambda of: list(Kind).index(of[0])), key=lambda of: of[0]):
        where_of: dict[str, str] = {}
        for _, query_id, where in group:
            where_of.setdefault(query_id, where)
        named = ", ".join(f"query {_quoted(name)} at {where}" for name, where in list(where_of.items())[:NAMED_QUERIES])
        more = f" and {len(where_of) - NAMED_QUERIES:,} more" if len(where_of) > NAMED_QUERIES else ""
        sentences.append(f"{named}{more}: {kind}")
    return sentences


def _meet_within_a_word(query: Query) -> bool:
    if not query.prompt:
        return False
    last = query.prompt[cluster_start(query.prompt, len(query.prompt) - 1)]
    return is_letter_of_a_word(last) and is_letter_of_a_word(query.completion[0])


def _quoted(text: str) -> str:
    """Characters that a terminal would obey are escaped."""
    return repr(text if len(text) <= LONGEST_TOKEN else f"{text[:LONGEST_TOKEN]}…")
