import json
import re
from collections import Counter

import pytest
from countryinfo import CountryInfo
from rank_bm25 import BM25Okapi

from trackstar.storage.queries import read_queries
from trackstar.tasks.demo.corpus import (
    RELATIONS,
    DemoCorpusConfig,
    build_demo_corpus,
    select_countries,
    slug,
    write_demo_corpus,
)


@pytest.fixture(scope="module")
def corpus():
    return build_demo_corpus(DemoCorpusConfig())


def words(text):
    return re.findall(r"\w+", text.lower())


def test_the_same_config_gives_the_same_corpus_and_another_seed_another_one(corpus):
    assert build_demo_corpus(DemoCorpusConfig()) == corpus
    assert build_demo_corpus(DemoCorpusConfig(seed=1)) != corpus


def test_ids_and_texts_are_unique(corpus):
    assert max(Counter(document.id for document in corpus.documents).values()) == 1
    assert max(Counter(document.text for document in corpus.documents).values()) == 1


def test_relevant_documents_are_exactly_the_statements_of_the_queried_fact(corpus):
    statements = {document.id for document in corpus.documents if document.kind == "statement"}
    for query in corpus.queries:
        assert set(query.relevant_ids) == {row for row in statements if row.startswith(f"{query.id}/")}


def test_every_relevant_document_holds_the_answer_and_the_country_or_its_demonym(corpus):
    texts = {document.id: document.text for document in corpus.documents}
    names = {slug(entry["name"]): (entry["name"], entry["demonym"]) for entry in select_countries()}
    for query in corpus.queries:
        for row in query.relevant_ids:
            assert query.completion.strip() in texts[row]
            assert any(name in texts[row] for name in names[query.id.split("/")[1]])


def test_the_phrasing_of_a_query_is_seen_for_other_facts_and_never_for_its_own(corpus):
    texts = {document.text for document in corpus.documents}
    asked = {query.prompt + query.completion + "." for query in corpus.queries}
    practised = Counter(row.id.split("/")[1] for row in corpus.documents if row.id.endswith("/query"))
    assert not asked & texts
    assert min(practised[relation] for relation in RELATIONS) >= 30


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_ways_to_say_a_fact_share_no_content_word(relation):
    glue = set(words("a an and are from has in is of on that the their to what where which who whoever with"))
    templates = [*RELATIONS[relation].statements, RELATIONS[relation].query]
    bare = [set(words(re.sub(r"\{\w+\}", "", template))) - glue for template in templates]
    assert max(Counter(word for template in bare for word in template).values()) == 1


def test_a_decoy_names_its_country_or_its_answer_and_is_no_statement(corpus):
    said = {document.text for document in corpus.documents if document.kind in ("statement", "practice")}
    names = {slug(entry["name"]): (entry["name"], entry["demonym"]) for entry in select_countries()}
    answers = {query.id: query.completion.strip() for query in corpus.queries}
    for decoy in (document for document in corpus.documents if document.kind == "decoy"):
        fact_id = decoy.id.removeprefix("decoy/").rpartition("/")[0]
        assert any(word in decoy.text for word in (*names[fact_id.split("/")[1]], answers[fact_id]))
        assert decoy.text not in said


def test_answers_are_those_of_the_source(corpus):
    source = {slug(entry["name"]): entry["name"] for entry in select_countries()}
    for query in corpus.queries:
        relation, country = query.id.split("/")
        info = CountryInfo(source[country])
        answers = {"capital": [info.capital()], "currency": info.currencies(), "calling_code": info.calling_codes()}
        assert [query.completion.strip().removeprefix("+")] == answers[relation]


def test_bm25_is_good_and_not_perfect(corpus):
    index = BM25Okapi([words(document.text) for document in corpus.documents])
    row = {document.id: position for position, document in enumerate(corpus.documents)}
    reciprocal_ranks = []
    for query in corpus.queries:
        scores = index.get_scores(words(query.prompt + query.completion))
        best = max(scores[row[document_id]] for document_id in query.relevant_ids)
        reciprocal_ranks.append(1 / (1 + (scores > best).sum()))
    assert 0.6 < sum(reciprocal_ranks) / len(reciprocal_ranks) < 0.95


def test_files_hold_the_corpus_in_order(corpus, tmp_path):
    corpus_files, queries_file = write_demo_corpus(corpus, tmp_path)
    rows = [json.loads(line) for path in corpus_files for line in path.read_text("utf-8").splitlines()]
    assert rows == [document.model_dump() for document in corpus.documents]
    assert read_queries(queries_file) == list(corpus.queries)
