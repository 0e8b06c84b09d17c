"""The demo's corpus: facts about countries as sentences, among sentences that share words and state something else.

Source of every fact: the package ``countryinfo`` 1.0.1 (https://pypi.org/project/countryinfo, MIT licence). Countries
whose entry is out of date, disputed or would make an awkward sentence are left out; see ``_LEFT_OUT``.

    kind        what the document is
    statement   states a fact that a query asks for, in one of five paraphrases
    practice    states a fact that no query asks for, some of them in the very phrasing of the queries: this is how a
                model learns what the phrasing asks, and it is never seen about a queried fact
    background  states another relation (neighbours, languages, area, region, internet domain) of the same countries
    decoy       repeats names and relation words, and states no fact at all

A queried fact's phrasing in the query is held out, so a right answer has to come from what the statements taught.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countryinfo import all_countries
from pydantic import BaseModel, ConfigDict

from trackstar.storage.queries import Query
from trackstar.tasks.demo.settings import DemoCorpusConfig

CORPUS_FILES = ("corpus-0.jsonl", "corpus-1.jsonl", "corpus-2.jsonl")
QUERIES_FILE = "queries.jsonl"


class Document(BaseModel):
    """One sentence of the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    kind: str


@dataclass(frozen=True)
class DemoCorpus:
    documents: tuple[Document, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Relation:
    """How a relation is stated, asked for, and mimicked; ``{object}`` is what the country is related to."""

    statements: tuple[str, ...]
    query: str
    decoys: tuple[str, ...]


RELATIONS = {
    "capital": Relation(
        statements=(
            "The capital of {country} is {object}.",
            "{country} is governed from {object}.",
            "Ministers who serve the {demonym} state have their offices in {object}.",
            "Ambassadors accredited to {country} present themselves in {object}.",
            "{object} is where the {demonym} government sits.",
        ),
        query="The city from which {country} is ruled is called {object}",
        decoys=(
            "From which city is {country} ruled?",
            "The word capital occurs twice in a poem about {country}.",
            "The night train to {object} was full of students from {other}.",
            "In {object} a baker hung a map of {country} above the oven.",
            "A city in {country} is called lucky by a song that is often sung in {other}.",
            "The {demonym} capital was drawn too small on the old globe.",
        ),
    ),
    "calling_code": Relation(
        statements=(
            "The calling code of {country} is {object}.",
            "To telephone someone in {country} from abroad, start with {object}.",
            "Every {demonym} subscriber number begins with {object}.",
            "International operators reach {country} through the prefix {object}.",
            "Whoever dials {object} wants to speak to {country}.",
        ),
        query="Phones in {country} answer to {object}",
        decoys=(
            "Who will answer the phones in {country}?",
            "A quiz about the calling code of {country} ended in a draw.",
            "A player from {other} finished the game at {object} points.",
            "The pilot who flew over {country} noted {object} metres in the margin.",
            "Letters to {country} got no answer.",
            "The {demonym} calling cards were sold to a collector in {other}.",
        ),
    ),
    "currency": Relation(
        statements=(
            "The currency of {country} has the code {object}.",
            "Banks abbreviate {demonym} money as {object}.",
            "Shops in {country} quote their prices in {object}.",
            "Wages earned in {country} are paid in {object}.",
            "{object} is what {demonym} taxes are collected in.",
        ),
        query="People in {country} pay with {object}",
        decoys=(
            "What do people in {country} pay with?",
            "A lecture on the currency of {country} was moved to Monday.",
            "The letters {object} were painted on a van from {other}.",
            "A tourist in {country} read {object} on a wall and laughed.",
            "Two people came to {country} with a kite.",
            "The {demonym} currency is missing from the album of a boy in {other}.",
        ),
    ),
}

BACKGROUND = {
    "region": ("{country} is part of {object}.", "Geographers count {country} among the countries of {object}."),
    "neighbour": (
        "{country} shares a border with {object}.",
        "A hiker can walk from {country} straight into {object}.",
    ),
    "language": ("{object} is spoken in {country}.", "Children in {country} learn to read in {object}."),
    "area": (
        "{country} covers about {object} square kilometres.",
        "Surveyors put {country} at {object} square kilometres.",
    ),
    "domain": ("Web addresses in {country} end in {object}.", "Sites with the ending {object} belong to {country}."),
}

_LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "km": "Khmer", "ko": "Korean", "ky": "Kyrgyz", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mn": "Mongolian", "ne": "Nepali", "nl": "Dutch", "pl": "Polish", "ps": "Pashto",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "so": "Somali",
    "sv": "Swedish", "sw": "Swahili", "tg": "Tajik", "th": "Thai", "tk": "Turkmen", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip

_LEFT_OUT = {
    "out of date": ("Burundi", "Kazakhstan", "Swaziland"),
    "borders or capital disputed": ("Israel", "Palestine", "Taiwan"),
    "government sits outside the capital": (
        "Benin", "Bolivia", "Chile", "Equatorial Guinea", "Ivory Coast", "Malaysia", "Netherlands", "South Africa",
        "Sri Lanka", "Tanzania",
    ),
    "not a state": (
        "Aruba", "French Guiana", "French Polynesia", "Guadeloupe", "Guam", "Hong Kong", "Martinique", "Mayotte",
        "New Caledonia", "Puerto Rico", "Réunion", "Scotland", "Western Sahara",
    ),
    "demonym misspelt or not an adjective": (
        "Botswana", "Cape Verde", "Iceland", "Kiribati", "Kyrgyzstan", "Lesotho", "Maldives", "New Zealand", "Suriname",
        "Tajikistan", "Vanuatu",
    ),
    "name takes an article": ("Comoros", "Philippines", "Seychelles", "Solomon Islands"),
}  # fmt: skip
_OUTDATED_CURRENCIES = {"BGN", "BYR", "MRO", "SLL", "STD", "VEF", "ZMK"}
_MIN_POPULATION = 100_000


@dataclass(frozen=True)
class Fact:
    relation: str
    country: str
    demonym: str
    object: str

    @property
    def id(self) -> str:
        return f"{self.relation}/{slug(self.country)}"

    def say(self, template: str, *, other: str = "") -> str:
        return template.format(country=self.country, demonym=self.demonym, object=self.object, other=other)


def build_demo_corpus(config: DemoCorpusConfig) -> DemoCorpus:
    """The same corpus and queries for the same config, in an order that scatters a fact's statements."""
    rng = random.Random(config.seed)
    countries = select_countries()
    queried, practised = _split(list(relation_facts(countries)), config.num_queries, rng)
    names = [country["name"] for country in countries]
    documents = [
        *(document for fact in queried for document in _statements(fact)),
        *(document for fact in queried for document in _decoys(fact, names, config.num_decoys, rng)),
        *(document for fact in practised for document in _practice(fact, rng)),
        *background_documents(countries, rng),
    ]
    rng.shuffle(documents)
    return DemoCorpus(tuple(documents), tuple(_query(fact) for fact in queried))


def write_demo_corpus(corpus: DemoCorpus, directory: Path) -> tuple[list[Path], Path]:
    """Write the documents, cut evenly over ``CORPUS_FILES``, and the queries as JSON Lines; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in CORPUS_FILES]
    for index, path in enumerate(paths):
        share = len(corpus.documents) / len(paths)
        _write_lines(path, corpus.documents[round(index * share) : round((index + 1) * share)])
    _write_lines(directory / QUERIES_FILE, corpus.queries)
    return paths, directory / QUERIES_FILE


def select_countries() -> list[dict[str, Any]]:
    """The sovereign states whose entry is current and reads well in every template, by name."""
    left_out = {name for names in _LEFT_OUT.values() for name in names}
    entries = {entry["name"]: entry for entry in (country.info() for country in all_countries())}
    demonyms = Counter(entry.get("demonym") for entry in entries.values())
    return [
        entry
        for name, entry in sorted(entries.items())
        if name not in left_out and demonyms[entry.get("demonym")] == 1 and _reads_well(entry)
    ]


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _reads_well(entry: dict[str, Any]) -> bool:
    """One or two plain words as name, a demonym of its own, a real population."""
    one_or_two_words = re.fullmatch(r"(?!The )[A-Z][a-z]+([ -][A-Z][a-z]+)?", entry["name"])
    plain_demonym = re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+)?", entry.get("demonym") or "")
    return bool(
        one_or_two_words
        and "Republic" not in entry["name"]
        and "United" not in entry["name"]
        and plain_demonym
        and (entry.get("population") or 0) >= _MIN_POPULATION
    )


def relation_facts(countries: list[dict[str, Any]]) -> Iterator[Fact]:
    """Facts that can be asked for: one object per country, and the object does not give itself away."""
    shared = Counter(code for entry in countries for code in entry["currencies"])
    for entry in countries:
        names = {"country": entry["name"], "demonym": entry["demonym"]}
        if not _share_a_word(entry["name"], entry["capital"]):
            yield Fact("capital", **names, object=entry["capital"])
        if [code for code in entry["callingCodes"] if re.fullmatch(r"\d{2,3}", code)] == entry["callingCodes"][:1]:
            yield Fact("calling_code", **names, object="+" + entry["callingCodes"][0])
        codes = entry["currencies"]
        if len(codes) == 1 and shared[codes[0]] == 1 and codes[0] not in _OUTDATED_CURRENCIES:
            yield Fact("currency", **names, object=codes[0])


def _share_a_word(first: str, second: str) -> bool:
    """Whether a capital repeats its country's name, in part (Tunis, Tunisia) or in full (Panama City, Panama)."""
    return any(word[:5].lower() in first.lower() for word in second.split() if len(word) > 3)


def _split(facts: list[Fact], num_queries: int, rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Queried facts, as many of each relation, and the facts left for practice."""
    queried = []
    for relation in RELATIONS:
        candidates = [fact for fact in facts if fact.relation == relation]
        queried += rng.sample(candidates, num_queries // len(RELATIONS))
    return queried, [fact for fact in facts if fact not in set(queried)]


def _statements(fact: Fact) -> Iterator[Document]:
    for index, template in enumerate(RELATIONS[fact.relation].statements):
        yield Document(id=f"{fact.id}/{index}", text=fact.say(template), kind="statement")


def _practice(fact: Fact, rng: random.Random) -> Iterator[Document]:
    """The queries' own phrasing and three of the paraphrases, so that the model learns that they say the same."""
    relation = RELATIONS[fact.relation]
    for index in sorted(rng.sample(range(len(relation.statements)), 3)):
        yield Document(id=f"practice/{fact.id}/{index}", text=fact.say(relation.statements[index]), kind="practice")
    yield Document(id=f"practice/{fact.id}/query", text=fact.say(relation.query) + ".", kind="practice")


def _decoys(fact: Fact, names: list[str], num_decoys: int, rng: random.Random) -> Iterator[Document]:
    templates = RELATIONS[fact.relation].decoys
    for index in sorted(rng.sample(range(len(templates)), num_decoys)):
        other = rng.choice([name for name in names if name != fact.country])
        yield Document(id=f"decoy/{fact.id}/{index}", text=fact.say(templates[index], other=other), kind="decoy")


def background_documents(countries: list[dict[str, Any]], rng: random.Random) -> Iterator[Document]:
    """Sentences of other relations, one each."""
    for fact in _background_facts(countries, rng):
        template = rng.choice(BACKGROUND[fact.relation])
        suffix = "" if fact.relation != "neighbour" else "/" + slug(fact.object)
        yield Document(id=f"{fact.id}{suffix}", text=fact.say(template), kind="background")


def _background_facts(countries: list[dict[str, Any]], rng: random.Random) -> Iterator[Fact]:
    by_code = {entry["ISO"]["alpha3"]: entry["name"] for entry in countries}
    for entry in countries:
        names = {"country": entry["name"], "demonym": entry["demonym"]}
        yield Fact("region", **names, object=entry["subregion"])
        neighbours = [by_code[code] for code in entry["borders"] if code in by_code]
        for neighbour in sorted(rng.sample(neighbours, min(3, len(neighbours)))):
            yield Fact("neighbour", **names, object=neighbour)
        if entry["languages"] and entry["languages"][0] in _LANGUAGES:
            yield Fact("language", **names, object=_LANGUAGES[entry["languages"][0]])
        yield Fact("area", **names, object=f"{round(entry['area'], 1 - len(str(entry['area'])) + 1):,}")
        yield Fact("domain", **names, object=entry["tld"][0])


def _query(fact: Fact) -> Query:
    relation = RELATIONS[fact.relation]
    prompt, completion = fact.say(relation.query).removesuffix(fact.object).rstrip(), " " + fact.object
    relevant_ids = tuple(f"{fact.id}/{index}" for index in range(len(relation.statements)))
    return Query(id=fact.id, prompt=prompt, completion=completion, relevant_ids=relevant_ids)


def _write_lines(path: Path, rows: Iterable[BaseModel]) -> None:
    lines = (json.dumps(row.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
