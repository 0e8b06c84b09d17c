"""The tables of the retraining benchmark on outputs that are sums over documents, without a model."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.retraining.models import Corpus, random_halves
from benchmarks.retraining.tables import checkpoint_rows, lds_rows, own_statements, part_rows, removal_rows
from trackstar.storage.queries import Query
from trackstar.tasks.demo.corpus import Document

NUM_QUERIES, STATED, NUM_DOCUMENTS = 3, 5, 60


@pytest.fixture
def corpus() -> Corpus:
    queries = tuple(
        Query(id=f"q{q}", prompt="a", completion=" b", relevant_ids=tuple(f"q{q}/{i}" for i in range(STATED)))
        for q in range(NUM_QUERIES)
    )
    ids = [name for query in queries for name in query.relevant_ids]
    ids += [f"other/{i}" for i in range(NUM_DOCUMENTS - len(ids))]
    return Corpus(tuple(Document(id=name, text="a b", kind="statement") for name in ids), queries)


@pytest.fixture
def worth(corpus: Corpus) -> np.ndarray:
    """[n q] what each document adds to the log-probability of each answer: its own statements, unequally."""
    return own_statements(corpus) * np.random.default_rng(0).uniform(1, 2, (NUM_DOCUMENTS, 1))


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_scores_that_are_what_each_document_adds_have_lds_one_and_the_paired_difference_is_to_the_first(worth):
    halves = random_halves(NUM_DOCUMENTS, num_subsets=20)
    *_, exact, opposite = lds_rows({"exact": worth, "opposite": -worth}, halves, halves @ worth)
    assert cells(exact) == ["exact", "1.000 (1.000 to 1.000)", ""]
    assert cells(opposite) == ["opposite", "−1.000 (−1.000 to −1.000)", "−2.000 (−2.000 to −2.000)"]


def test_checkpoints_are_scored_one_by_one_and_as_their_sum(worth):
    halves = random_halves(NUM_DOCUMENTS, num_subsets=20)
    third = np.ones_like(worth) * np.arange(NUM_DOCUMENTS)[:, None]  # cancels in the sum
    *_, row = checkpoint_rows({"m": [third, worth, -third]}, halves, halves @ worth)
    assert [cell[:5] for cell in cells(row)[2:5:2]] == ["1.000", "1.000"]
    assert cells(row)[5] == ""


def test_parts_of_the_scores_show_what_noise_on_other_documents_drowns(corpus, worth):
    halves = random_halves(NUM_DOCUMENTS, num_subsets=40)
    noise = np.random.default_rng(1).normal(size=worth.shape) * 3 * (1 - own_statements(corpus))
    *_, row = part_rows({"noisy": worth + noise}, corpus, halves, halves @ worth)
    _, everything, _, own, others, share = (cell.replace("−", "-") for cell in cells(row))
    assert float(own) == 1
    assert float(others) < float(everything) < float(own)
    assert float(share.removesuffix("%")) < 50


def test_leave_k_out_counts_what_of_the_removed_states_the_fact_and_how_far_the_answer_falls(corpus, worth):
    def outputs(rows, *, seed, name):
        return worth[rows].sum(axis=0) - 10

    retraining = SimpleNamespace(corpus=corpus, outputs=outputs)
    settings = {"num_removed": STATED, "num_queries": NUM_QUERIES, "num_random": 2}
    *_, best, worst = removal_rows(retraining, {"best": worth, "worst": -worth}, **settings)
    assert cells(best)[1] == f"{STATED:.1f}"
    assert cells(best)[2].startswith(f"−{worth.sum(axis=0).mean():.3f}")
    assert cells(worst)[1:3] == ["0.0", "0.000 (0.000 to 0.000)"]
