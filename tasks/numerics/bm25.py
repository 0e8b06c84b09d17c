"""BM25 scores of every document for every query, a few documents at a time, by rank-bm25's definition.

    f(w,d)  how often a word occurs in a document       |d|     number of words of a document
    df(w)   number of documents that have the word      N       number of documents
    idf(w)  log((N - df + ½) / (df + ½)), floored       k1, b   rank-bm25's 1.5 and 0.75

    score(q, d) = Σ_w∈q idf(w) · f(w,d) (k1 + 1) / (f(w,d) + k1 (1 - b + b |d| / mean |d|))

N, df and mean |d| are sums over the corpus; with them a document is scored on its own, and only a query's words matter.
So two passes are enough, and what is held is the vocabulary. ``BM25Okapi`` wants the corpus in memory; it gives the idf
and the parameters here, and the scores are those of its ``get_scores`` up to rounding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from jaxtyping import Float, Int
from rank_bm25 import BM25Okapi
from scipy.sparse import csr_array

from trackstar.tasks.numerics.words import words


@dataclass
class CorpusCounts:
    """What BM25 has to know of a whole corpus.

    Attributes:
        num_documents: N.
        num_words: Σ |d|.
        document_frequencies: df of every word.
    """

    num_documents: int = 0
    num_words: int = 0
    document_frequencies: Counter[str] = field(default_factory=Counter)

    def add(self, documents: Sequence[str]) -> None:
        for found in map(words, documents):
            self.num_words += len(found)
            self.document_frequencies.update(set(found))
        self.num_documents += len(documents)


class Bm25:
    """Scores of a query set's texts.

    One thing differs from the library. It gives a word found in more than half of the documents a quarter of the mean
    idf, and in a small corpus whose words are mostly shared that mean is negative: a document would lose by containing
    a word of the query. Such a word counts nothing here.

    Attributes:
        columns: The words of all queries that the corpus has, numbered.
    """

    def __init__(self, corpus: CorpusCounts, queries: Sequence[str]) -> None:
        asked = [[word for word in words(text) if word in corpus.document_frequencies] for text in queries]
        self.columns = {word: column for column, word in enumerate(dict.fromkeys(chain(*asked)))}
        self._queries = _counts(asked, self.columns)
        if self.columns:  # rank-bm25 divides by the number of documents and by that of distinct words
            self._library = _library(corpus)
            self._idf = np.maximum([self._library.idf[word] for word in self.columns], 0.0)

    def scores(self, documents: Sequence[str]) -> Float[np.ndarray, "q n"]:
        """Score some documents of the corpus; a query that shares no word with one scores 0."""
        found = [words(text) for text in documents]
        lengths = np.array([len(of_document) for of_document in found], dtype=np.int64)
        return self.scores_of_counts(_counts(found, self.columns), lengths)

    def scores_of_counts(self, counts: csr_array, lengths: Int[np.ndarray, " n"]) -> Float[np.ndarray, "q n"]:
        """The same of documents whose words were counted.

        Args:
            counts: f(w,d) [n w], the words as ``columns`` has them.
            lengths: |d|.
        """
        if not self.columns:
            return np.zeros((self._queries.shape[0], len(lengths)))
        return (self._queries @ self._weighted(counts, lengths).T).toarray()

    def word_scores(self, document: str) -> dict[str, float]:
        """What each word adds to a document's score for the first query, all of its occurrences together."""
        if not self.columns:
            return {}
        found = words(document)
        weighted = self._weighted(_counts([found], self.columns), np.array([len(found)]))
        parts = self._queries[[0]].multiply(weighted).tocoo()
        added = dict(zip(parts.col.tolist(), parts.data.tolist(), strict=True))
        return {word: added[column] for word, column in self.columns.items() if added.get(column)}

    def _weighted(self, counts: csr_array, lengths: np.ndarray) -> csr_array:
        f = counts.tocoo()
        k1, b, mean_length = self._library.k1, self._library.b, self._library.avgdl
        # idf(w) · f(w,d) (k1 + 1) / (f(w,d) + k1 (1 - b + b |d| / mean |d|))
        f.data = f.data * self._idf[f.col] * (k1 + 1) / (f.data + k1 * (1 - b + b * lengths[f.row] / mean_length))
        return f.tocsr()


def _counts(texts: Sequence[Sequence[str]], columns: dict[str, int]) -> csr_array:
    """[t w] How often each word that has a column occurs in each text."""
    found = [[columns[word] for word in text if word in columns] for text in texts]
    pointers = np.cumsum([0, *map(len, found)])
    indices = np.array([column for row in found for column in row], dtype=np.int64)
    counts = csr_array((np.ones(len(indices)), indices, pointers), shape=(len(texts), len(columns)))
    counts.sum_duplicates()
    return counts


def _library(corpus: CorpusCounts) -> BM25Okapi:
    """rank-bm25 as it would be after reading the whole corpus, but for the documents that it would hold."""
    library = BM25Okapi([["any"]])
    library.corpus_size = corpus.num_documents
    library.avgdl = corpus.num_words / corpus.num_documents
    library.idf = {}
    library._calc_idf(corpus.document_frequencies)
    return library
