"""The share of each predicted token of some documents in their scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy import ndarray

from trackstar.tasks.models.document_tokens import DocumentTokens
from trackstar.tasks.models.engine import Engine, EngineSpec, block_projections, model_blocks
from trackstar.tasks.numerics.batching import batches, pad, windows
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens

SEPARATE_AT_ONCE = 64  # gradients that are held together


def predicted_tokens(engine: Engine, spec: EngineSpec) -> PredictedTokens:
    """A reader of predicted tokens for the gradients that a spec describes."""
    blocks = block_projections(engine.model, spec, device=engine.device)
    return PredictedTokens(engine.model, model_blocks(engine.model, spec.gradient), blocks)


def sequence_shares(
    reader: PredictedTokens,
    engine: Engine,
    documents: Sequence[DocumentTokens],
    readout: Mapping[str, ndarray],
    *,
    token_budget: int,
) -> list[ndarray]:
    """The share of every token of some documents of any length; that of one whose loss does not count is 0."""
    try:
        return _forward_shares(reader, engine, documents, readout, token_budget)
    except NotImplementedError:  # the model has an operation without a forward-mode derivative, as BLOOM's GELU
        return [_separate_shares(engine, document, readout) for document in documents]


def _forward_shares(
    reader: PredictedTokens,
    engine: Engine,
    documents: Sequence[DocumentTokens],
    readout: Mapping[str, ndarray],
    token_budget: int,
) -> list[ndarray]:
    w = {block: torch.from_numpy(values).to(engine.device) for block, values in readout.items()}
    sequences, targets = [document.ids for document in documents], [document.targets for document in documents]
    shares = [np.zeros(len(ids)) for ids in sequences]
    cut = windows([len(ids) for ids in sequences], context=engine.context)
    for batch in batches(cut, token_budget=token_budget):
        tokens, chosen = (torch.from_numpy(array).to(engine.device) for array in pad(batch, sequences, targets))
        for window, found in zip(batch, reader(tokens, chosen, w).cpu().numpy(), strict=True):
            shares[window.document][window.start : window.stop] += found[: window.num_tokens]
    return shares


def _separate_shares(engine: Engine, document: DocumentTokens, readout: Mapping[str, ndarray]) -> ndarray:
    """The same from a gradient for each token: of the text up to it, with its loss alone."""
    ids, targets = document.ids, document.targets
    shares = np.zeros(len(ids))
    counted = np.flatnonzero(targets[1:]) + 1 if isinstance(targets, ndarray) else np.arange(targets, len(ids))
    for start in range(0, len(counted), SEPARATE_AT_ONCE):
        places = counted[start : start + SEPARATE_AT_ONCE].tolist()
        _, vectors = engine.gradients([ids[: place + 1] for place in places], first_targets=places)
        shares[places] = sum(rows @ readout[block] for block, rows in vectors.items())
    return shares
