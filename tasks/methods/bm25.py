"""Methods that rank candidates without the model, in the same result table as those that need it."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray

from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import Draft
from trackstar.storage.queries import Query, asked
from trackstar.storage.results import PROPONENT, QueryLike
from trackstar.storage.tables import read_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.methods.settings import BM25
from trackstar.tasks.numerics.bm25 import Bm25, CorpusCounts
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import stage
from trackstar.tasks.scoring.rankings import BOTH_ENDS, rank_parts, write_ranking

DOCUMENTS_AT_ONCE = 1024  # whose scores for all queries are held together


class BaselineRequest(IndexedShards):
    """A query set to be ranked by the documents' texts, or by chance."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 3

    method: str
    queries: tuple[Query, ...]
    top_k: int
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.method} scores of {len(self.queries)} queries"

    def inputs(self) -> dict[str, Any]:
        settings = {"method": self.method, "top_k": self.top_k, "seed": self.seed}
        return {**super().inputs(), "queries": asked(self.queries), **settings}


@stage
def rank_by_baseline(request: BaselineRequest, draft: Draft) -> None:
    """Write each query's ranking by BM25 or by chance.

    That of BM25 holds no opponents: a lexical score of 0 is the absence of shared words, which speaks against nothing.
    """
    candidates = Candidates(request.shards, request.index, request.tombstones)
    if request.method == BM25:
        scores, kinds = _bm25_scores(request, candidates), (PROPONENT,)
    else:
        scores, kinds = _random_scores(request, candidates), BOTH_ENDS
    ranked = rank_parts(scores, candidates, top_k=request.top_k, kinds=kinds)
    query_ids = [query.id for query in request.queries]
    write_ranking(draft, ranked, method=request.method, query_ids=query_ids, candidates=candidates)


def search_text(query: QueryLike) -> str:
    """What a query is searched by: the text that the model reads, prompt and completion as they are."""
    return query.prompt + query.completion


def _bm25_scores(request: BaselineRequest, candidates: Candidates) -> Iterator[ndarray]:
    """[q n] of some documents at a time; withdrawn ones count nowhere in the corpus."""
    corpus = CorpusCounts()
    with progress(request.label, total=2 * len(candidates.paths), unit="shards") as advance:
        for path, start in candidates.shards():
            texts = read_table(path, DOCUMENTS)["text"]
            corpus.add(texts.gather(candidates.live(start, start + len(texts)) - start).to_list())
            advance(1)
        bm25 = Bm25(corpus, [search_text(query) for query in request.queries])
        for path in candidates.paths:
            for documents in read_table(path, DOCUMENTS).iter_slices(DOCUMENTS_AT_ONCE):
                yield bm25.scores(documents["text"].to_list())
            advance(1)


def _random_scores(request: BaselineRequest, candidates: Candidates) -> Iterator[ndarray]:
    """[q n] of some documents at a time, the same however the corpus is cut."""
    rng = np.random.default_rng(request.seed)
    for start in range(0, candidates.num_positions, DOCUMENTS_AT_ONCE):
        count = min(DOCUMENTS_AT_ONCE, candidates.num_positions - start)
        yield rng.random((count, len(request.queries))).T
