"""The words of a corpus in memory, so that a question is answered by BM25 without reading a text again."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array
from upath import UPath

from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.tables import read_table
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.methods.bm25 import DOCUMENTS_AT_ONCE
from trackstar.tasks.numerics.bm25 import Bm25, CorpusCounts
from trackstar.tasks.numerics.words import words as words_of

WORD_BYTES = 4


class ShardWords(NamedTuple):
    """The words of a shard's documents by number, one document after another, and where each begins [n + 1]."""

    words: ndarray
    starts: ndarray


class HeldWords:
    """The vocabulary of an index, what BM25 has to know of it, and the words of its documents as far as there is room.

    Attributes:
        counts: Of the documents that were not withdrawn.
    """

    def __init__(self, candidates: Candidates, memory: Memory) -> None:
        self._candidates, self._memory = candidates, memory
        self.counts = CorpusCounts()
        self._number: dict[str, int] = {}
        for path, start in candidates.shards():
            texts = read_table(path, DOCUMENTS)["text"].to_list()
            live = set((candidates.live(start, start + len(texts)) - start).tolist())
            texts = [text if row in live else "" for row, text in enumerate(texts)]  # others are never scored
            known = self.counts.num_words
            self.counts.add([texts[row] for row in sorted(live)])
            num_bytes = WORD_BYTES * (self.counts.num_words - known + len(texts))
            memory.keep(("words", path), num_bytes, partial(self._numbered, texts))

    def scores(self, bm25: Bm25) -> Iterator[tuple[ndarray, ndarray]]:
        """Positions [n] of documents that were not withdrawn and their scores [q n], some at a time."""
        for path, start in self._candidates.shards():
            held = self._memory.get(("words", path))
            for first, scores in self._read_scores(path, bm25) if held is None else [(0, self._scores(held, bm25))]:
                positions = self._candidates.live(start + first, start + first + scores.shape[1])
                yield positions, scores[:, positions - start - first]

    def _read_scores(self, path: UPath, bm25: Bm25) -> Iterator[tuple[int, ndarray]]:
        for number, documents in enumerate(read_table(path, DOCUMENTS).iter_slices(DOCUMENTS_AT_ONCE)):
            yield number * DOCUMENTS_AT_ONCE, bm25.scores(documents["text"].to_list())

    def _scores(self, held: ShardWords, bm25: Bm25) -> ndarray:
        return bm25.scores_of_counts(self._counts_of(held, bm25), np.diff(held.starts))

    def _numbered(self, texts: Sequence[str]) -> ShardWords:
        words, starts = [], [0]
        for text in texts:
            words += [self._number.setdefault(word, len(self._number)) for word in words_of(text)]
            starts.append(len(words))
        return ShardWords(np.array(words, dtype=np.int32), np.array(starts, dtype=np.int64))

    def _counts_of(self, held: ShardWords, bm25: Bm25) -> csr_array:
        """f(w,d) [n w] of the words that are asked about."""
        column = np.full(len(self._number), -1, dtype=np.int64)
        for word, place in bm25.columns.items():
            if word in self._number:
                column[self._number[word]] = place
        found = column[held.words]
        places = np.flatnonzero(found >= 0)
        rows = np.searchsorted(held.starts, places, side="right") - 1
        shape = (len(held.starts) - 1, len(bm25.columns))
        counts = csr_array((np.ones(len(places)), (rows, found[places])), shape=shape)
        counts.sum_duplicates()
        return counts
