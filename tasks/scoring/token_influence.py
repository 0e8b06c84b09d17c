"""The tokens that carry each shown proponent's score: a few more passes of those few documents.

Two shares add up to the score each, and answer two questions. ``share``: what did the model learn by predicting this
token? ``input_share``: through which position does the gradient pass? That is often the word before the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy import ndarray

from trackstar.storage.layout import QUERIES, QUERY_VECTORS, RANKING, TOKEN_INFLUENCE
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.contents import Index, shard_documents
from trackstar.tasks.index.curvature import IndexedShards
from trackstar.tasks.models.document_tokens import DocumentTokens, kept_tokens, offsets
from trackstar.tasks.models.engine import Engine, EngineSpec, block_projections, open_engine
from trackstar.tasks.numerics.batching import batches, pad, windows
from trackstar.tasks.numerics.curvature import squared_norms, whiten
from trackstar.tasks.numerics.scores import query_basis
from trackstar.tasks.numerics.token_influence import TokenInfluence, candidate_norms, query_readout
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import stage
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.settings import TokenInfluenceConfig
from trackstar.tasks.scoring.token_shares import predicted_tokens, sequence_shares
from trackstar.tasks.scoring.whitening import TrainWhitening

SCHEMA = {
    "query_id": pl.String,
    "candidate_id": pl.String,
    "position": pl.UInt32,
    "start": pl.UInt32,  # of the token in the text, in characters; a special token has none of them
    "stop": pl.UInt32,
    "share": pl.Float64,  # of the token as predicted
    "input_share": pl.Float64,  # of the token as an input
}


class TokenInfluenceRequest(IndexedShards):
    """The first proponents of a gradient method's ranking, to be read token by token."""

    kind: ClassVar[str] = "token_influence"
    version: ClassVar[int] = 3

    engine: EngineSpec
    queries: Artifact
    ranking: Artifact
    unit_norm: bool
    config: TokenInfluenceConfig

    @property
    def label(self) -> str:
        return f"tokens of {self.config.num_proponents} proponents of {self.queries.facts['num_queries']} queries"

    def inputs(self) -> dict[str, Any]:
        return {
            **super().inputs(),
            "engine": self.engine.inputs(),
            "queries": self.queries.digest,
            "ranking": self.ranking.digest,
            "unit_norm": self.unit_norm,
            "config": self.config.model_dump(),
        }


def token_request(
    index: Index, encoded: Artifact, ranking: Artifact, score: ScoreConfig, config: TokenInfluenceConfig
) -> TokenInfluenceRequest:
    """What it takes to read the proponents of a ranking that was scored with these settings."""
    return TokenInfluenceRequest(
        index=str(index.path),
        shards=index.shards,
        engine=index.engine,
        queries=encoded,
        ranking=ranking,
        unit_norm=score.unit_norm,
        config=config,
    )


class _Readouts(NamedTuple):
    """How queries read candidates: w per block [q d], and what a score is divided by [n q]."""

    blocks: dict[str, ndarray]
    norms: ndarray


@stage
def read_tokens(request: TokenInfluenceRequest, draft: Draft) -> None:
    """Write query_id, candidate_id, position, start, stop, share, input_share: a proponent's shares are its score."""
    method = request.ranking.facts["method"]  # a sweep of λ has others beside it
    ranking = read_table(request.ranking.path(request.index), RANKING).filter(pl.col("method") == method)
    wanted = ranking.filter((pl.col("kind") == PROPONENT) & (pl.col("rank") <= request.config.num_proponents))
    queries_of = dict(wanted.group_by("candidate_id", maintain_order=True).agg("query_id").iter_rows())
    documents = shard_documents(request.shard_paths, list(queries_of))
    with open_engine(request.engine) as engine:
        found = kept_tokens(engine.tokenizer, documents)
        readouts = _readouts(request, engine, found)
        with progress(request.label, total=len(queries_of), unit="documents") as advance:
            tables = _tables(request, engine, queries_of, found, readouts, advance)
    table = pl.concat([pl.DataFrame(schema=SCHEMA), *tables])
    write_table(draft.path / TOKEN_INFLUENCE, table)
    draft.facts |= {
        **request.config.model_dump(),
        "method": method,
        "num_documents": len(queries_of),
        "largest_difference": _largest_difference(table, wanted),
    }


def _readouts(request: TokenInfluenceRequest, engine: Engine, found: Sequence[DocumentTokens]) -> _Readouts:
    """Every query's w in every block, and ‖G_m‖ ‖G_q‖ of every pair; 1 where scores are not normalised."""
    query_vectors = read_arrays(request.queries.path(request.index), QUERY_VECTORS)
    _, vectors = engine.gradients([row.ids for row in found], first_targets=[row.targets for row in found])
    facts = request.ranking.facts
    weight, whitening = facts["mixing_weight"], TrainWhitening.of_ranking(facts, request.index)
    num_queries = request.queries.facts["num_queries"]
    blocks, m_norms, q_norms = {}, np.zeros(len(found)), np.zeros(num_queries)
    for block, phi in vectors.items():
        C = whitening.factor(block)
        basis = query_basis(C, query_vectors[block])
        blocks[block], norms = query_readout(basis, range(num_queries), mixing_weight=weight)
        q_norms += norms
        psi_norms = squared_norms(whiten(C, phi))
        m_norms += candidate_norms(phi, psi_norms, basis, mixing_weight=weight)
    product = np.sqrt(np.outer(m_norms, q_norms))
    return _Readouts(blocks, product if request.unit_norm else np.ones_like(product))


def _tables(
    request: TokenInfluenceRequest,
    engine: Engine,
    queries_of: Mapping[str, Sequence[str]],
    found: Sequence[DocumentTokens],
    readouts: _Readouts,
    advance: Any,
) -> list[pl.DataFrame]:
    query_ids = read_table(request.queries.path(request.index), QUERIES)["query_id"].to_list()
    number = {query_id: row for row, query_id in enumerate(query_ids)}
    asked = [[number[query_id] for query_id in of_document] for of_document in queries_of.values()]
    predicted = _predicted_shares(request, engine, found, asked, readouts)
    reader = TokenInfluence(engine.model, block_projections(engine.model, request.engine, device=engine.device))
    tables = []
    with reader:
        for row, (candidate_id, document) in enumerate(zip(queries_of, found, strict=True)):
            of_queries = {name: torch.from_numpy(values[asked[row]]) for name, values in readouts.blocks.items()}
            shares = _document_shares(reader, engine, document, of_queries, request.engine)
            places = offsets(engine.tokenizer, document)
            tables += [
                _table(
                    query_ids[query],
                    candidate_id,
                    places,
                    [predicted[row, query], column / readouts.norms[row, query]],
                )
                for query, column in zip(asked[row], shares.T, strict=True)
            ]
            advance(1)
    return tables


def _predicted_shares(
    request: TokenInfluenceRequest,
    engine: Engine,
    documents: Sequence[DocumentTokens],
    asked: Sequence[Sequence[int]],
    readouts: _Readouts,
) -> dict[tuple[int, int], ndarray]:
    """The shares of predicted tokens by the rows of document and query; a query's documents are read together."""
    reader, found = predicted_tokens(engine, request.engine), {}
    for query in sorted({query for of_document in asked for query in of_document}):
        rows = [row for row, of_document in enumerate(asked) if query in of_document]
        shares = sequence_shares(
            reader,
            engine,
            [documents[row] for row in rows],
            {block: values[query] for block, values in readouts.blocks.items()},
            token_budget=request.engine.model.token_budget,
        )
        found |= {(row, query): of_row / readouts.norms[row, query] for row, of_row in zip(rows, shares, strict=True)}
    return found


def _document_shares(
    reader: TokenInfluence,
    engine: Engine,
    document: DocumentTokens,
    readouts: Mapping[str, torch.Tensor],
    spec: EngineSpec,
) -> ndarray:
    """[t q] of a document of any length; the token that two windows share has a part in both."""
    num_queries = len(next(iter(readouts.values())))
    shares = np.zeros((len(document.ids), num_queries))
    for batch in batches(windows([len(document.ids)], context=engine.context), token_budget=spec.model.token_budget):
        tokens, targets = (
            torch.from_numpy(array).to(engine.device) for array in pad(batch, [document.ids], [document.targets])
        )
        for window, found in zip(batch, reader(tokens, targets, readouts).cpu().numpy(), strict=True):
            shares[window.start : window.stop] += found[: window.num_tokens]
    return shares


def _table(
    query_id: str, candidate_id: str, offsets: Sequence[tuple[int, int]], shares: Sequence[ndarray]
) -> pl.DataFrame:
    starts, stops = zip(*offsets, strict=True)
    columns = {
        "query_id": [query_id] * len(offsets),
        "candidate_id": [candidate_id] * len(offsets),
        "position": range(len(offsets)),
        "start": starts,
        "stop": stops,
        "share": shares[0],
        "input_share": shares[1],
    }
    return pl.DataFrame(columns, schema=SCHEMA)


def _largest_difference(table: pl.DataFrame, wanted: pl.DataFrame) -> float:
    """Between a score and the sum of its shares: what the store's precision and rounding leave."""
    place = ["query_id", "candidate_id"]
    sums = wanted.join(table.group_by(place).agg(pl.col("share").sum()), on=place)
    return float((sums["score"] - sums["share"]).abs().max() or 0.0)
