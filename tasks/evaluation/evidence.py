"""Which candidates are evidence for a query, and who says so.

    relevant_ids    the query file names them
    aliases         the query has ``aliases``, and the text holds the completion or one of them as whole words
    entailment      it has neither, and a local entailment model was asked (``trackstar.tasks.evaluation.entailment``)

Text is compared word by word (``trackstar.tasks.numerics.words``): width, ligatures, capitals and line breaks do not
matter.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import regex

from trackstar.storage.queries import Query
from trackstar.tasks.index.contents import Index, each_text
from trackstar.tasks.index.withdrawals import read_tombstones
from trackstar.tasks.numerics.phrases import Phrases
from trackstar.tasks.numerics.words import normalise

Source = Literal["relevant_ids", "aliases", "entailment"]

END_OF_ANSWER = regex.compile(r"[\p{Terminal_Punctuation}\s]")


class LabelledQuery(Query):
    """A query with its evidence filled in, and ``evidence``, where that comes from."""

    evidence: Source | None = None


def labelled(queries: Sequence[Query], index: Index) -> list[LabelledQuery]:
    """The queries with their evidence among the documents of an index, whose texts are read only if one needs them."""
    withdrawn = set(read_tombstones(index.tombstones, str(index.path))["id"])
    return label(queries, each_text(index.shard_paths, without=withdrawn))


def label(queries: Sequence[Query], texts: Iterable[tuple[str, str]]) -> list[LabelledQuery]:
    """The queries with their evidence; one that names its own keeps it, and one without either has none.

    Args:
        texts: Every candidate's id and text; not read where no query needs it.
    """
    searched = [query for query in queries if _is_searched(query)]
    found = _candidates_with(searched, texts) if searched else {}
    return [_labelled(query, found.get(query.id)) for query in queries]


def evidence_sources(queries: Iterable[Query]) -> dict[str, Source]:
    """Query id to the source of its evidence, for the queries whose source is known."""
    return {query.id: query.evidence for query in queries if isinstance(query, LabelledQuery) and query.evidence}


def names_of_answer(query: Query) -> list[str]:
    """The completion without the punctuation that ends it, and its aliases, normalised; none of them empty."""
    answer = normalise(query.completion)
    ends = "".join(set(END_OF_ANSWER.findall(answer)))
    names = [answer.rstrip(ends), *map(normalise, query.answer_aliases)]
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _is_searched(query: Query) -> bool:
    return query.relevant_ids is None and bool(query.answer_aliases)


def _candidates_with(queries: Sequence[Query], texts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Query id to the candidates whose text holds one of the answer's names as whole words."""
    names = Phrases({query.id: names_of_answer(query) for query in queries})
    found: dict[str, list[str]] = {query.id: [] for query in queries}
    for candidate_id, text in texts:
        for query_id in names.owners_in(text):
            found[query_id].append(candidate_id)
    return found


def _labelled(query: Query, found: Sequence[str] | None) -> LabelledQuery:
    values = query.model_dump()
    if found is not None:
        return LabelledQuery(**{**values, "relevant_ids": tuple(found), "evidence": "aliases"})
    return LabelledQuery(**values, evidence="relevant_ids" if query.relevant_ids is not None else None)
