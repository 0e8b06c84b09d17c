"""Which candidates are evidence for a query, and who says so.

    relevant_ids    the query file names them
    aliases         the query has ``aliases``, and the text holds the completion or one of them as whole words
    entailment      it has neither, and a local entailment model was asked (``trackstar.tasks.evaluation.entailment``)

Text is compared after Unicode NFKC and case folding, so that width, ligatures and capitals do not matter.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

from trackstar.storage.queries import Query
from trackstar.tasks.index.contents import Index, each_text
from trackstar.tasks.index.withdrawals import read_tombstones

Source = Literal["relevant_ids", "aliases", "entailment"]


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
    names = [normalise(query.completion).strip().rstrip(".,;:!?"), *map(normalise, query.answer_aliases)]
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def normalise(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _is_searched(query: Query) -> bool:
    return query.relevant_ids is None and bool(query.answer_aliases)


def _candidates_with(queries: Sequence[Query], texts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Query id to the candidates whose text holds one of the answer's names between word boundaries."""
    patterns = {query.id: _pattern(names_of_answer(query)) for query in queries}
    found: dict[str, list[str]] = {query.id: [] for query in queries}
    for candidate_id, text in texts:
        normal = normalise(text)
        for query_id, pattern in patterns.items():
            if pattern.search(normal):
                found[query_id].append(candidate_id)
    return found


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    """A name may begin or end with a sign that is no word character, so the boundary is the absence of a neighbour."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def _labelled(query: Query, found: Sequence[str] | None) -> LabelledQuery:
    values = query.model_dump()
    if found is not None:
        return LabelledQuery(**{**values, "relevant_ids": tuple(found), "evidence": "aliases"})
    return LabelledQuery(**values, evidence="relevant_ids" if query.relevant_ids is not None else None)
