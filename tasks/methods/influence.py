"""Influence functions over the attributed matrices: no projection, no V, an exact damped Gauss-Newton solve.

It costs a forward and a backward pass over the corpus for every query and iteration, so it is for small models: the
measure that TrackStar's approximations are held against.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy import ndarray
from torch import Tensor

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.queries import Query, asked
from trackstar.storage.tables import read_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.withdrawals import read_tombstones
from trackstar.tasks.methods.settings import InfluenceConfig
from trackstar.tasks.models.checkpoint import context_tokens, load_model, load_tokenizer
from trackstar.tasks.models.document_tokens import kept_tokens
from trackstar.tasks.models.engine import EngineSpec, decoder_matrices
from trackstar.tasks.models.tokens import tokenize_queries
from trackstar.tasks.numerics.batching import Targets, Window, batches, pad, windows
from trackstar.tasks.numerics.influence import Batch, CurvedLoss, Product, conjugate_gradients, mean_eigenvalue
from trackstar.tasks.numerics.kronecker import Eigenbasis, KroneckerPreconditioner, eigenbases
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, stage
from trackstar.tasks.runtime.stop import unless_stopped
from trackstar.tasks.scoring.rankings import rank_parts, write_ranking

LARGEST_WORK = 10**12  # parameters × tokens × queries: an hour or two on one core
TOKENS_AT_ONCE = 512  # of a batch; the products of all queries are in flight at once
NUM_PROBES = 32


class InfluenceRequest(StageRequest):
    """A query set to be ranked by influence functions."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 4

    engine: EngineSpec
    documents: tuple[Artifact, ...]
    queries: tuple[Query, ...]
    config: InfluenceConfig
    top_k: int
    tombstones: Artifact | None = None

    @property
    def label(self) -> str:
        return f"influence functions of {len(self.queries)} queries"

    def inputs(self) -> dict[str, Any]:
        return {
            "method": "influence",
            "checkpoint": self.engine.checkpoint.digest,
            "context_tokens": self.engine.model.context_tokens,
            "documents": [shard.digest for shard in self.documents],
            "queries": asked(self.queries),
            "config": self.config.model_dump(),
            "top_k": self.top_k,
            "tombstones": self.tombstones and self.tombstones.digest,
        }


@stage
def rank_by_influence(request: InfluenceRequest, draft: Draft) -> None:
    """Write each query's proponents and opponents by ``∇L(m)ᵀ (H + δ I)^-1 ∇L(q)``."""
    documents, query_batch, loss, bases = _prepare(request)
    candidates = Candidates(request.documents, request.index, request.tombstones)
    num_documents = candidates.num_live  # H is their curvature: a withdrawn one has no part in that either
    with _one_solve(request, documents) as advance:

        def product(vectors: Tensor) -> Tensor:
            total = sum(loss.gauss_newton_product(batch, vectors) for _, batch in unless_stopped(documents))
            advance(1)
            return total / num_documents

        mean = _mean_eigenvalue(product, loss, request.config)
        delta = request.config.damping * mean
        solutions, iterations = _solve(
            request.config,
            lambda vectors: product(vectors) + delta * vectors,
            loss.gradients(query_batch),
            KroneckerPreconditioner(bases, mean_eigenvalue=mean, damping=delta),
        )
    scores = np.zeros((len(request.queries), candidates.num_positions))
    scores[:, candidates.live(0, candidates.num_positions)] = _scores(loss, documents, solutions, num_documents)
    write_ranking(
        draft,
        rank_parts([scores], candidates, top_k=request.top_k),
        method="influence",
        query_ids=[query.id for query in request.queries],
        candidates=candidates,
    )
    draft.facts |= {
        "hessian": "Gauss-Newton, exact products",
        **request.config.model_dump(),
        "mean_eigenvalue": mean,
        "num_iterations": iterations,
        "num_parameters": loss.num_parameters,
    }


Documents = list[tuple[list[Window], Batch]]


def _prepare(request: InfluenceRequest) -> tuple[Documents, Batch, CurvedLoss, list[Eigenbasis]]:
    """Documents and queries as batches, and the model in the precision of the products."""
    settings = request.engine.model.model_copy(update={"dtype": request.config.dtype, "device": "cpu"})
    tokenizer = load_tokenizer(request.engine.checkpoint, settings)
    withdrawn = read_tombstones(request.tombstones, request.index)["id"].implode()
    tables = [read_table(shard.path(request.index), DOCUMENTS) for shard in request.documents]
    live = pl.concat(tables, how="diagonal").filter(~pl.col("id").is_in(withdrawn))
    found = kept_tokens(tokenizer, live)
    sequences, targets = [row.ids for row in found], [row.targets for row in found]
    query_tokens = tokenize_queries(tokenizer, request.queries)
    model = load_model(request.engine.checkpoint, settings)
    model.set_attn_implementation("eager")  # fused kernels have no forward-mode derivative
    matrices = decoder_matrices(model, request.engine.gradient)
    loss = CurvedLoss(model, [matrix.name for matrix in matrices])
    _require_affordable(loss.num_parameters, sum(map(len, sequences)), len(query_tokens))
    cut = windows([len(sequence) for sequence in sequences], context=context_tokens(model, settings))
    documents = [(batch, _tensors(batch, sequences, targets)) for batch in batches(cut, token_budget=TOKENS_AT_ONCE)]
    rows = [Window(row, 0, len(item.ids)) for row, item in enumerate(query_tokens)]
    query_batch = _tensors(rows, [item.ids for item in query_tokens], [item.completion_start for item in query_tokens])
    bases = eigenbases(model, matrices, (batch for _, batch in unless_stopped(documents)))
    return documents, query_batch, loss, bases


def _tensors(batch: Sequence[Window], sequences: Sequence[Sequence[int]], first_targets: Sequence[Targets]) -> Batch:
    tokens, chosen = pad(batch, sequences, first_targets)
    return torch.from_numpy(tokens), torch.from_numpy(chosen)


def _require_affordable(num_parameters: int, num_tokens: int, num_queries: int) -> None:
    work = num_parameters * num_tokens * num_queries
    if work > LARGEST_WORK:
        raise InputError(
            f"influence functions take a pass over the corpus per query and iteration: {num_parameters:,} parameters × "
            f"{num_tokens:,} tokens × {num_queries:,} queries is {work:.0e}, and {LARGEST_WORK:.0e} is the most; ask "
            "fewer queries, take a smaller model, or leave out the method influence"
        )


def _mean_eigenvalue(product: Product, loss: CurvedLoss, config: InfluenceConfig) -> float:
    generator = torch.Generator().manual_seed(0)
    return mean_eigenvalue(
        product,
        num_parameters=loss.num_parameters,
        num_probes=NUM_PROBES,
        generator=generator,
        dtype=getattr(torch, config.dtype),
    )


def _solve(config: InfluenceConfig, product: Product, right_sides: Tensor, precondition: Product) -> tuple[Tensor, int]:
    try:
        return conjugate_gradients(
            product,
            right_sides,
            tolerance=config.tolerance,
            max_iterations=config.max_iterations,
            precondition=precondition,
        )
    except ValueError as error:
        raise InputError(f"influence functions at damping {config.damping:g}: {error}") from error


def _scores(loss: CurvedLoss, documents: Documents, solutions: Tensor, num_documents: int) -> ndarray:
    """[q n] of all documents; one cut into windows is their sum."""
    scores = np.zeros((num_documents, len(solutions)))
    for rows, batch in unless_stopped(documents):
        np.add.at(scores, [window.document for window in rows], loss.directional(batch, solutions).numpy())
    return scores.T


@contextmanager
def _one_solve(request: InfluenceRequest, documents: Documents) -> Iterator[Any]:
    with progress(request.label, total=request.config.max_iterations + 1, unit="products") as advance:
        yield advance
