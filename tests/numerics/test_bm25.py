import unicodedata

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from trackstar.tasks.numerics.bm25 import Bm25, CorpusCounts
from trackstar.tasks.numerics.words import words


def zipf_texts(num_texts, *, seed, longest=60):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, longest, size=num_texts)
    return [" ".join(f"w{word}" for word in draw.zipf(1.3, size=length) % 5000) for length in lengths]


def library_scores(documents, queries):
    library = BM25Okapi([words(text) for text in documents])
    return np.stack([library.get_scores(words(text)) for text in queries])


def bm25_scores(documents, queries, *, at_once=None):
    """[q n], the documents counted and scored ``at_once`` at a time."""
    step = at_once or max(1, len(documents))
    parts = [documents[start : start + step] for start in range(0, max(1, len(documents)), step)]
    corpus = CorpusCounts()
    for part in parts:
        corpus.add(part)
    bm25 = Bm25(corpus, queries)
    return np.concatenate([bm25.scores(part) for part in parts], axis=1)


@pytest.mark.parametrize("at_once", [400, 7, 1])
def test_scores_are_those_of_rank_bm25_however_the_corpus_is_cut(at_once):
    documents, queries = zipf_texts(400, seed=at_once), zipf_texts(20, seed=100)
    expected = library_scores(documents, queries)
    # The same float64 terms added in another order.
    np.testing.assert_allclose(bm25_scores(documents, queries, at_once=at_once), expected, rtol=1e-12, atol=1e-12)
    assert (expected > 0).any()


def test_a_word_the_query_repeats_counts_again():
    documents = ["red fox", "blue whale", "green frog", "grey wolf"]
    once, twice = bm25_scores(documents, ["fox", "fox fox"])
    np.testing.assert_allclose(twice, 2 * once)
    assert once.max() > 0


@pytest.mark.parametrize(
    ("query", "documents"),
    [
        ("日本の首都は東京", ["パリはフランスの首都です。", "東京は日本の首都です。", "水は冷たい。", "空は青い。"]),
        ("水", ["火事だ。", "飲み水を買う。", "空は青い。"]),
        ("เมืองหลวงของไทยคือกรุงเทพ", ["ปารีสอยู่ในฝรั่งเศส", "กรุงเทพเป็นเมืองหลวงของไทย", "น้ำเย็น", "ฟ้าสีฟ้า"]),
        ("भारत की राजधानी दिल्ली", ["पेरिस फ़्रांस में है", "दिल्ली भारत की राजधानी है", "पानी ठंडा", "आकाश"]),
        ("Thủ đô Hà Nội", ["Paris ở Pháp", unicodedata.normalize("NFD", "Hà Nội là thủ đô"), "Nước", "Trời"]),
    ],
    ids=["Japanese", "one ideograph", "Thai", "Hindi", "Vietnamese"],
)
def test_the_document_that_states_the_answer_scores_highest_in_any_script(query, documents):
    (scores,) = bm25_scores(documents, [query])
    np.testing.assert_allclose([scores], library_scores(documents, [query]), rtol=1e-12, atol=1e-12)
    assert scores.argmax() == 1
    assert scores[1] > 0


@pytest.mark.parametrize("documents", [[], ["", "  "], ["...", "—"]])
def test_a_corpus_without_words_scores_zero(documents):
    scores = bm25_scores(documents, ["what is it", ""])
    assert scores.shape == (2, len(documents))
    assert not scores.any()


def test_a_document_without_words_scores_zero_among_others():
    documents = ["red fox", "", "blue whale", "green frog"]
    assert bm25_scores(documents, ["red frog whale"])[0, 1] == 0
    np.testing.assert_allclose(bm25_scores(documents, ["red frog"]), library_scores(documents, ["red frog"]))


def test_sharing_a_word_never_counts_against_a_document():
    documents, query = ["the red fox", "the red hen", "the blue"], "the red"
    assert library_scores(documents, [query]).min() < 0  # what this guards against is really there
    assert bm25_scores(documents, [query]).min() >= 0


def test_no_query_gives_no_rows():
    assert bm25_scores(["red fox"], []).shape == (0, 1)
