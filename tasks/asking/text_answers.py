"""Answers by methods that read texts and no gradient: BM25 and dense."""

import threading
from collections import Counter
from collections.abc import Iterator

from numpy import ndarray

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.asking.held_embeddings import HeldEmbeddings
from trackstar.tasks.asking.held_words import HeldWords
from trackstar.tasks.asking.watching import Progress, Watch
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index
from trackstar.tasks.methods.bm25 import search_text
from trackstar.tasks.methods.settings import BM25
from trackstar.tasks.numerics.bm25 import Bm25
from trackstar.tasks.numerics.words import spans
from trackstar.tasks.report.passages import Token


class TextAnswers:
    """Scores of an index's texts; words and embeddings are kept as far as there is room."""

    def __init__(self, index: Index, candidates: Candidates, memory: Memory, *, dense_encoder: str | None) -> None:
        self._index, self._candidates, self._memory = index, candidates, memory
        self._dense_encoder = dense_encoder
        self._lock, self._words = threading.Lock(), None

    def scores(self, method: str, query: Query, watch: Watch) -> Iterator[tuple[ndarray, ndarray]]:
        """Positions [n] and scores [1 n] of documents that were not withdrawn, some at a time."""
        if method == BM25:
            parts = self._held_words().scores(self.bm25(query))
        else:
            parts = self._embeddings().scores(search_text(query), self._candidates)
        done = 0
        for positions, scores in parts:
            yield positions, scores
            done += len(positions)
            watch.tell(Progress("scores", method, done, self._candidates.num_live))

    def bm25(self, query: Query) -> Bm25:
        return Bm25(self._held_words().counts, [search_text(query)])

    def _held_words(self) -> HeldWords:
        with self._lock:
            if self._words is None:
                self._words = HeldWords(self._candidates, self._memory)
            return self._words

    def _embeddings(self) -> HeldEmbeddings:
        if self._dense_encoder is None:
            raise InputError("the method dense needs a sentence encoder; open the index with dense_encoder=DIR")
        return HeldEmbeddings(self._index, self._dense_encoder, self._memory)


def word_shares(bm25: Bm25, text: str) -> tuple[Token, ...]:
    """The words of the question that a text has, and what each occurrence adds to its score."""
    by_word = bm25.word_scores(text)
    found = [span for span in spans(text) if span.word in by_word]
    counts = Counter(span.word for span in found)
    return tuple(Token(span.start, span.stop, by_word[span.word] / counts[span.word]) for span in found)
