"""Queries through the model: their projected gradients, losses and the model's own answers."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch

from trackstar.storage.errors import InputError
from trackstar.storage.layout import QUERIES, QUERY_VECTORS
from trackstar.storage.manifest import Draft
from trackstar.storage.matrices import write_arrays
from trackstar.storage.queries import Query
from trackstar.storage.tables import write_table
from trackstar.tasks.models.engine import Engine, EngineSpec, open_engine
from trackstar.tasks.models.query_warnings import sentence, summary
from trackstar.tasks.models.tokens import QueryTokens, tokenize_queries
from trackstar.tasks.runtime.stage import StageRequest, stage


class QueryRequest(StageRequest):
    """A query set to be turned into gradients."""

    kind: ClassVar[str] = "queries"
    version: ClassVar[int] = 3

    engine: EngineSpec
    queries: tuple[Query, ...]

    @property
    def label(self) -> str:
        return f"{self.engine.checkpoint.name} on {len(self.queries)} queries"

    def inputs(self) -> dict[str, Any]:
        asked = [query.model_dump(mode="json", include={"id", "prompt", "completion"}) for query in self.queries]
        return {"engine": self.engine.inputs(), "queries": asked}


@stage
def encode_queries(request: QueryRequest, draft: Draft) -> None:
    """Write the projected gradient of every query's completion loss, what the model itself says, and its warnings."""
    with open_engine(request.engine) as engine:
        tokens, losses, vectors = query_gradients(engine, request.queries)
        answers = [_answer(engine, item) for item in tokens]
    write_arrays(draft.path / QUERY_VECTORS, vectors)
    write_table(
        draft.path / QUERIES,
        pl.DataFrame(
            {
                "query_id": [query.id for query in request.queries],
                "num_tokens": pl.Series([len(t.ids) - t.completion_start for t in tokens], dtype=pl.UInt32),
                "loss": losses,
                "probability": np.exp(-losses),
                "answer": answers,
                "warnings": pl.Series(
                    [[sentence(warning) for warning in of.warnings] for of in tokens], dtype=pl.List(pl.String)
                ),
            }
        ),
    )
    draft.facts |= {
        "num_queries": len(tokens),
        "mean_probability": float(np.exp(-losses).mean()),
        "warnings": summary({query.id: of.warnings for query, of in zip(request.queries, tokens, strict=True)}),
    }


def query_gradients(
    engine: Engine, queries: Sequence[Query]
) -> tuple[list[QueryTokens], np.ndarray, dict[str, np.ndarray]]:
    """The tokens of each query, its loss summed over the completion [q], and its vector in each block [q d].

    Raises:
        InputError: A query is longer than the context, has no token to predict, or no finite gradient.
    """
    tokens = _tokens(engine, queries)
    losses, vectors = engine.gradients(
        [item.ids for item in tokens], first_targets=[item.completion_start for item in tokens]
    )
    _require_usable(queries, losses, vectors)
    return tokens, losses, vectors


def _tokens(engine: Engine, queries: Sequence[Query]) -> list[QueryTokens]:
    tokens = tokenize_queries(engine.tokenizer, queries)
    for query, (ids, *_) in zip(queries, tokens, strict=True):
        if len(ids) > engine.context:
            raise InputError(
                f"query {query.id!r} is {len(ids)} tokens long and the model's context {engine.context}; shorten it"
            )
    return tokens


def _require_usable(queries: Sequence[Query], losses: np.ndarray, vectors: dict[str, np.ndarray]) -> None:
    finite = np.isfinite(losses)
    for rows in vectors.values():
        finite &= np.isfinite(rows).all(axis=1)
    if not finite.all():
        query = queries[int(np.argmin(finite))]
        raise InputError(f"the gradient of query {query.id!r} is not finite; are the checkpoint's weights?")


@torch.no_grad()
def _answer(engine: Engine, tokens: QueryTokens) -> str:
    """What the model itself would say: as many greedy tokens as the completion has."""
    ids = torch.tensor([tokens.ids[: tokens.completion_start]], device=engine.device)
    for _ in range(len(tokens.ids) - tokens.completion_start):
        logits = engine.model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return engine.tokenizer.decode(ids[0, tokens.completion_start :], skip_special_tokens=True)
