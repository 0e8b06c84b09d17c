"""What the entailment model of the benchmark learns from is right, and is none of what it is asked to judge."""

import random

from benchmarks.facts.corpus import FactsConfig, build_facts_corpus
from benchmarks.facts.labels import examples


def test_statements_entail_their_fact_and_nothing_else_does_and_judged_facts_are_left_out():
    corpus = build_facts_corpus(FactsConfig(seed=100))
    asked = {query.id for query in corpus.queries[::2]}
    pairs = list(examples(corpus, asked, random.Random(0)))
    texts = {row.id: row.text for row in corpus.documents}
    said = {f"{query.prompt}{query.completion}": query for query in corpus.queries}
    assert {said[hypothesis].id for _, hypothesis, _ in pairs} == {query.id for query in corpus.queries} - asked
    for premise, hypothesis, label in pairs:
        states = premise in {texts[name] for name in said[hypothesis].relevant_ids}
        assert states == bool(label)
    assert 0.2 < sum(label for _, _, label in pairs) / len(pairs) < 0.5
