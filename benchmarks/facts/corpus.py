"""The corpus of the fact-tracing benchmark: real facts, each stated a designed number of times.

Source of every fact: the package ``countryinfo`` 1.0.1 (MIT licence), through ``trackstar.tasks.demo.corpus``, which
leaves out countries whose entry is dated or disputed; what a country's provinces are is taken as the package has it.

    kind        what the document is
    statement   states a queried fact, in one of the paraphrases; how many there are is what the benchmark varies
    practice    states a fact that no query asks for in the queries' own phrasing, and again in a paraphrase
    plain       states a fact that no query asks for, once
    decoy       shares words with a query (subject, relation or answer) and does not state its fact
    background  states another relation of the same countries

A query's phrasing is never seen about its own fact, so a right answer has to come from the statements.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from trackstar.storage.queries import Query
from trackstar.tasks.demo.corpus import (
    RELATIONS,
    Document,
    Fact,
    Relation,
    background_documents,
    relation_facts,
    select_countries,
)

BUCKETS = {"1": (1, 1), "2–3": (2, 3), "4–10": (4, 10), "more than 10": (11, 18)}  # least and most statements

PROVINCE = "province"
FACT_RELATIONS = {
    **RELATIONS,
    # Of a province the subject is the province, so that there are thousands of facts; the answer is the country.
    PROVINCE: Relation(
        statements=(
            "{subject} lies within the borders of {object}.",
            "Whoever lives in {subject} holds a passport of {object}.",
            "Maps of {object} show {subject} in bold.",
            "The governor of {subject} swears loyalty to {object}.",
            "{object} counts {subject} among its provinces.",
        ),
        query="{subject} belongs to the country called {object}",
        decoys=(
            "Who belongs to the club called {subject}?",
            "A ship called {subject} was sold in {other}.",
            "A choir from {object} lost its luggage in {other}.",
            "The word {subject} is hard to spell for children in {other}.",
            "An almanac of {object} was printed in {other}.",
            "A horse called {subject} belongs to a farmer in {other}.",
        ),
    ),
}
FRAMES = ("{}", "From an almanac: {}", "A traveller wrote home: {}", "Read aloud in class: {}")


class FactsConfig(BaseModel):
    """Size and seed of the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Decides which facts are queried, how often each is stated, and the order.")
    queries_per_cell: int = Field(15, ge=1, le=20, description="Queried facts of each relation and frequency bucket.")
    num_decoys: int = Field(4, ge=0, le=6, description="Decoys per queried fact.")
    practice_share: float = Field(0.25, ge=0, le=1, description="Share of the unqueried provinces put as queries are.")


@dataclass(frozen=True)
class FactsCorpus:
    """Documents, queries, and how often each query's fact is stated, by query id."""

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]
    frequencies: dict[str, int]

    @property
    def num_facts(self) -> int:
        """Facts that some document states, queried or not."""
        stating = (row.id.removeprefix("practice/") for row in self.documents if row.kind != "decoy")
        return len({name.rpartition("/")[0] for name in stating})


def bucket_of(frequency: int) -> str:
    return next(name for name, (least, most) in BUCKETS.items() if least <= frequency <= most)


def build_facts_corpus(config: FactsConfig) -> FactsCorpus:
    """The same corpus for the same config."""
    rng = random.Random(config.seed)
    countries = select_countries()
    names = [country["name"] for country in countries]
    facts = [*relation_facts(countries), *_province_facts(countries)]
    frequencies = dict(_queried(facts, config, rng))
    documents = [
        *(document for fact, count in frequencies.items() for document in _statements(fact, count, rng)),
        *(document for fact in frequencies for document in _decoys(fact, names, config.num_decoys, rng)),
        *(document for fact in facts if fact not in frequencies for document in _unqueried(fact, config, rng)),
        *background_documents(countries, rng),
    ]
    rng.shuffle(documents)
    queries = tuple(_query(fact, count) for fact, count in frequencies.items())
    return FactsCorpus(tuple(documents), queries, {fact.id: count for fact, count in frequencies.items()})


def write_facts_corpus(corpus: FactsCorpus, directory: Path) -> tuple[Path, Path]:
    """Write corpus.jsonl and queries.jsonl; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "corpus.jsonl", directory / "queries.jsonl"
    for path, rows in zip(paths, (corpus.documents, corpus.queries), strict=True):
        lines = (json.dumps(row.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def _province_facts(countries: list[dict]) -> Iterator[Fact]:
    """Provinces whose name is one or two plain words, of one country only, and no country's or capital's name."""
    counts = Counter(name for country in countries for name in country.get("provinces") or ())
    taken = {country[key] for country in countries for key in ("name", "capital")}
    for country in countries:
        for name in country.get("provinces") or ():
            is_plain = re.fullmatch(r"[A-Z][a-z]+([ -][A-Z][a-z]+)?", name)
            if is_plain and counts[name] == 1 and name not in taken and name[:5] != country["name"][:5]:
                yield Fact(PROVINCE, country=name, demonym="", object=country["name"])


def _queried(facts: list[Fact], config: FactsConfig, rng: random.Random) -> Iterator[tuple[Fact, int]]:
    """As many facts of each relation in each bucket, with how often each is stated."""
    for relation in FACT_RELATIONS:
        candidates = [fact for fact in facts if fact.relation == relation]
        chosen = iter(rng.sample(candidates, config.queries_per_cell * len(BUCKETS)))
        for least, most in BUCKETS.values():
            for _ in range(config.queries_per_cell):
                yield next(chosen), rng.randint(least, most)


def _statements(fact: Fact, count: int, rng: random.Random) -> Iterator[Document]:
    """Paraphrases in random order, each bare before any comes in a frame."""
    templates = list(FACT_RELATIONS[fact.relation].statements)
    variants = [frame.format(template) for frame in FRAMES for template in rng.sample(templates, len(templates))]
    for number, template in enumerate(variants[:count]):
        yield Document(id=f"{fact.id}/{number}", text=_say(fact, template), kind="statement")


def _decoys(fact: Fact, names: list[str], count: int, rng: random.Random) -> Iterator[Document]:
    templates = FACT_RELATIONS[fact.relation].decoys
    for number in sorted(rng.sample(range(len(templates)), count)):
        other = rng.choice([name for name in names if name not in (fact.country, fact.object)])
        yield Document(id=f"decoy/{fact.id}/{number}", text=_say(fact, templates[number], other=other), kind="decoy")


def _unqueried(fact: Fact, config: FactsConfig, rng: random.Random) -> Iterator[Document]:
    """Practice for a share of the facts; what is left of the provinces is stated once and never asked."""
    relation = FACT_RELATIONS[fact.relation]
    if fact.relation == PROVINCE and rng.random() >= config.practice_share:
        yield Document(id=f"{fact.id}/plain", text=_say(fact, rng.choice(relation.statements)), kind="plain")
        return
    for number in rng.sample(range(len(relation.statements)), 2):
        text = _say(fact, relation.statements[number])
        yield Document(id=f"practice/{fact.id}/{number}", text=text, kind="practice")
    yield Document(id=f"practice/{fact.id}/query", text=_say(fact, relation.query) + ".", kind="practice")


def _query(fact: Fact, count: int) -> Query:
    asked = _say(fact, FACT_RELATIONS[fact.relation].query)
    return Query(
        id=fact.id,
        prompt=asked.removesuffix(fact.object).rstrip(),
        completion=" " + fact.object,
        relevant_ids=tuple(f"{fact.id}/{number}" for number in range(count)),
    )


def _say(fact: Fact, template: str, *, other: str = "") -> str:
    return template.format(
        country=fact.country, subject=fact.country, demonym=fact.demonym, object=fact.object, other=other
    )
