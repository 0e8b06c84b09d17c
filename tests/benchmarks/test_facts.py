"""The corpus of the fact-tracing benchmark is what it claims to be, and results are grouped by what they claim."""

import re
from collections import Counter

import polars as pl
import pytest

from benchmarks.facts.corpus import BUCKETS, FACT_RELATIONS, FactsConfig, bucket_of, build_facts_corpus
from benchmarks.facts.outcome import RIGHT, WRONG, Outcome, Run, pooled, pooled_first_kinds
from benchmarks.facts.page import markdown
from benchmarks.facts.smollm2 import PRACTISED_FILMS, build_films_corpus
from trackstar.storage.results import RESULT_SCHEMA


@pytest.fixture(scope="module")
def corpus():
    return build_facts_corpus(FactsConfig())


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def test_the_same_config_gives_the_same_corpus_and_another_seed_another_one(corpus):
    assert build_facts_corpus(FactsConfig()) == corpus
    assert build_facts_corpus(FactsConfig(seed=1)) != corpus


def test_there_are_thousands_of_facts_and_no_id_or_text_twice(corpus):
    assert corpus.num_facts > 2000
    for values in ([row.id for row in corpus.documents], [row.text for row in corpus.documents]):
        assert len(set(values)) == len(values)


def test_every_relation_and_bucket_has_as_many_queries(corpus):
    cells = Counter((query.id.split("/")[0], bucket_of(corpus.frequencies[query.id])) for query in corpus.queries)
    assert set(cells) == {(relation, bucket) for relation in FACT_RELATIONS for bucket in BUCKETS}
    assert len(set(cells.values())) == 1


def test_a_fact_is_stated_as_often_as_designed_and_never_in_the_phrasing_of_its_query(corpus):
    texts = {row.id: row.text for row in corpus.documents}
    stated = Counter(row.id.rpartition("/")[0] for row in corpus.documents if row.kind == "statement")
    assert stated == corpus.frequencies
    for query in corpus.queries:
        assert set(query.relevant_ids) == {name for name in texts if re.fullmatch(rf"{query.id}/\d+", name)}
        assert not any(query.prompt in texts[name] for name in query.relevant_ids)
        assert all(query.completion.strip() in texts[name] for name in query.relevant_ids)


@pytest.mark.parametrize("relation", FACT_RELATIONS)
def test_a_query_and_the_statements_share_no_word_but_subject_answer_and_glue(relation):
    glue = words("a an and are from has in is of on that the their to what where which who whoever with for its")
    bare = {
        template: words(re.sub(r"\{\w+\}", "", template)) - glue for template in FACT_RELATIONS[relation].statements
    }
    asked = words(re.sub(r"\{\w+\}", "", FACT_RELATIONS[relation].query)) - glue
    assert not any(asked & found for found in bare.values())


def test_a_decoy_shares_a_word_with_its_query_and_is_no_evidence(corpus):
    evidence = {name for query in corpus.queries for name in query.relevant_ids}
    asked = {query.id: words(query.prompt + query.completion) for query in corpus.queries}
    for row in corpus.documents:
        if row.kind == "decoy":
            assert words(row.text) & asked[row.id.removeprefix("decoy/").rpartition("/")[0]]
            assert row.id not in evidence


def outcome_of(corpus):
    """Of every third query; those of odd number have their evidence at rank 2, a right answer and a tail-patch."""
    queries = corpus.queries[::3]
    other = next(row.id for row in corpus.documents if row.kind == "plain")
    rows, changes = [], []
    for number, query in enumerate(queries):
        ranked = [other, query.relevant_ids[0]] if number % 2 else [query.relevant_ids[0], other]
        for method in ("trackstar", "bm25"):
            rows += [(query.id, method, "proponent", rank, name, 1.0 / rank) for rank, name in enumerate(ranked, 1)]
            changes.append((query.id, method, ranked[0], 0.1 * (number % 2)))
    columns = ["query_id", "method", "candidate_id", "probability_change"]
    return Outcome(
        frame=pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row"),
        tail_patch=pl.DataFrame(changes, schema=columns, orient="row"),
        queries=queries,
        frequencies=corpus.frequencies,
        is_right={query.id: bool(number % 2) for number, query in enumerate(queries)},
    )


def test_results_are_grouped_by_frequency_and_by_whether_the_answer_is_right(corpus):
    outcome = outcome_of(corpus)
    assert outcome.metrics(RIGHT).methods["bm25"]["mrr"].value == 0.5
    assert outcome.metrics(WRONG).methods["bm25"]["mrr"].value == 1.0
    assert outcome.metrics(RIGHT).methods["trackstar"]["tail_patch"].value == pytest.approx(0.1)
    assert sum(outcome.metrics(bucket).num_queries for bucket in BUCKETS) == outcome.metrics().num_queries
    page = markdown([Run(0, corpus, outcome)], command="make bench-facts")
    assert f"| trackstar | {outcome.metrics().methods['trackstar']['mrr'].value:.3f} (" in page


def test_the_queries_of_two_seeds_are_pooled_though_some_ask_about_the_same_fact(corpus):
    other = build_facts_corpus(FactsConfig(seed=1))
    runs = [Run(seed, built, outcome_of(built)) for seed, built in ((0, corpus), (1, other))]
    asked = [{query.id for query in run.outcome.queries} for run in runs]
    assert not asked[0].isdisjoint(asked[1])
    whole, parts = pooled(runs).metrics(), [run.outcome.metrics() for run in runs]
    assert whole.num_queries == sum(part.num_queries for part in parts) == sum(map(len, asked))
    expected = sum(part.num_queries * part.methods["bm25"]["mrr"].value for part in parts) / whole.num_queries
    assert whole.methods["bm25"]["mrr"].value == pytest.approx(expected)
    assert sum(pooled_first_kinds(runs)["bm25"].values()) == whole.num_queries
    page = markdown(runs, command="make bench-facts")
    difference = parts[1].differences["bm25"]["tail_patch"].value
    row = page.partition("## tail_patch, method minus trackstar, in each seed")[2].partition("| bm25 |")[2]
    assert f"{difference:.4f} (" in row.split("|")[1]


def test_an_invented_film_is_stated_as_often_as_designed_and_asked_in_a_phrasing_that_others_taught():
    films = build_films_corpus()
    assert build_films_corpus() == films
    stated = Counter(row.id.rpartition("/")[0] for row in films.documents if row.kind == "statement")
    assert stated == films.frequencies
    texts = [row.text for row in films.documents]
    assert len(set(texts)) == len(texts)
    for query in films.queries:
        assert not any(text.startswith(query.prompt) for text in texts)
    assert sum(text.startswith("The film The") for text in texts) == PRACTISED_FILMS


def test_taking_the_decoys_out_moves_up_what_is_below_them(corpus):
    query = corpus.queries[0]
    other = next(row.id for row in corpus.documents if row.kind == "plain")
    decoy = next(row.id for row in corpus.documents if row.id.startswith(f"decoy/{query.id}/"))
    ranked = [decoy, other, query.relevant_ids[0]]
    rows = [(query.id, "bm25", "proponent", rank, name, 1.0 / rank) for rank, name in enumerate(ranked, 1)]
    frame = pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")
    tail_patch = pl.DataFrame(schema={"query_id": pl.String})
    outcome = Outcome(frame, tail_patch, [query], corpus.frequencies, {query.id: True})
    assert outcome.without_decoys().frame.select("rank", "candidate_id").rows() == [
        (1, other),
        (2, query.relevant_ids[0]),
    ]
    assert outcome.first_kinds(corpus)["bm25"]["decoy of the query"] == 1
