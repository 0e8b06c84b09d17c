"""Evidence by a local entailment model, for queries of which nothing else says what states their fact.

    premise     a document's text           hypothesis  the query's prompt and completion
    evidence    the model is at least ``threshold`` sure that the hypothesis follows

No such model can read a corpus once a query. What it reads is the pool, as TREC pools the runs it judges: the first
documents of every method compared. What lies outside is not judged and counts as no evidence, so recall is of the
pool's evidence, and another set of methods has another pool.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl

from trackstar.storage.layout import JUDGEMENTS, RANKING
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.queries import Query, asked
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.evaluation.entailment_model import EntailmentModel, entailment_probabilities, read_entailment_model
from trackstar.tasks.evaluation.evidence import LabelledQuery
from trackstar.tasks.evaluation.metrics import Pool
from trackstar.tasks.evaluation.settings import Judge
from trackstar.tasks.index.contents import Index, shard_texts
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import stage

ENTAILMENT = "entailment"
PAIR = ("query_id", "candidate_id")


class Judged(NamedTuple):
    """The queries with all evidence there is, and what was read to know it."""

    queries: list[LabelledQuery]
    pool: Pool | None


class JudgementRequest(IndexedShards):
    """The first documents of one method to be judged, without those that were judged for another one."""

    kind: ClassVar[str] = "judgements"
    version: ClassVar[int] = 1

    judge: EntailmentModel
    queries: tuple[Query, ...]
    ranking: Artifact
    depth: int
    earlier: tuple[Artifact, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.judge.checkpoint.name} on the first {self.depth} of {self.ranking.facts['method']}"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "judge": self.judge.model_dump(exclude={"checkpoint"}) | {"digest": self.judge.checkpoint.digest},
            "queries": asked(self.queries),
            "ranking": self.ranking.digest,
            "depth": self.depth,
            "earlier": [artifact.digest for artifact in self.earlier],
        }


def judged(index: Index, queries: Sequence[LabelledQuery], rankings: Sequence[Artifact], judge: Judge | None) -> Judged:
    """The queries with evidence filled in where no other source says anything; without a judge they keep none."""
    undecided = tuple(query for query in queries if query.evidence is None)
    if judge is None or not undecided:
        return Judged(list(queries), None)
    model = read_entailment_model(judge.path)
    common = {"index": str(index.path), "shards": index.shards, "judge": model, "queries": undecided}
    judgements: tuple[Artifact, ...] = ()
    for ranking in rankings:
        request = JudgementRequest(ranking=ranking, depth=judge.config.depth, earlier=judgements, **common)
        judgements += (judge_proponents(request),)
    table = pl.concat([read_table(judgement.path(str(index.path)), JUDGEMENTS) for judgement in judgements])
    entailed = table.filter(pl.col(ENTAILMENT) >= judge.config.threshold)
    pool = Pool(
        model=model.checkpoint.name,
        digest=model.checkpoint.digest,
        threshold=judge.config.threshold,
        depth=judge.config.depth,
        num_queries=len(undecided),
        num_documents=len(table),
        num_evidence=len(entailed),
    )
    return Judged(_with_evidence(queries, entailed), pool)


@stage
def judge_proponents(request: JudgementRequest, draft: Draft) -> None:
    """Write query_id, candidate_id, entailment: how surely each document states the fact."""
    found = _unjudged(request)
    texts = shard_texts(request.shard_paths, set(found["candidate_id"]))
    hypotheses = {query.id: f"{query.prompt}{query.completion}".strip() for query in request.queries}
    pairs = [(texts[candidate], hypotheses[query]) for query, candidate in found.iter_rows()]
    values = np.zeros(len(pairs))
    with progress(request.label, total=len(pairs), unit="documents") as advance:
        for rows, probabilities in entailment_probabilities(request.judge, pairs):
            values[rows] = probabilities
            advance(len(rows))
    write_table(draft.path / JUDGEMENTS, found.with_columns(pl.Series(ENTAILMENT, values)))
    draft.facts |= {"method": request.ranking.facts["method"], "num_documents": len(pairs)}


def _unjudged(request: JudgementRequest) -> pl.DataFrame:
    """Query and candidate of each of the ranking's first documents that no earlier judgement is about."""
    is_judged = (
        (pl.col("kind") == PROPONENT)
        & (pl.col("rank") <= request.depth)
        & pl.col("query_id").is_in([query.id for query in request.queries])
    )
    found = read_table(request.ranking.path(request.index), RANKING).filter(is_judged).select(PAIR)
    for artifact in request.earlier:
        known = read_table(artifact.path(request.index), JUDGEMENTS)
        found = found.join(known, on=PAIR, how="anti", maintain_order="left")
    return found


def _with_evidence(queries: Sequence[LabelledQuery], entailed: pl.DataFrame) -> list[LabelledQuery]:
    found = dict(entailed.group_by("query_id", maintain_order=True).agg("candidate_id").iter_rows())
    filled = {"evidence": ENTAILMENT}
    return [
        query if query.evidence else query.model_copy(update={**filled, "relevant_ids": tuple(found.get(query.id, ()))})
        for query in queries
    ]
