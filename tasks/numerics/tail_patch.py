"""Tail-patch: how one more training step on one document changes what the model says.

    g  [m n]  gradient of the document's mean token loss        u = g / √V, at most of root mean square 1
    θ' = θ − η u                                                change = p_θ'(completion) − p_θ(completion)

Chang et al. 2024, Section 4 ("tail-patch score"): a method-free measure of influence. The step is Adafactor's without
momentum, from the checkpoint's own second moment, on the traced matrices; the model is put back exactly as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tasks.numerics.loss import TokenLoss

ROWS_AT_ONCE = 64


def training_updates(
    model: nn.Module, loss: TokenLoss, tokens: Int[Tensor, " t"], scales: Mapping[str, Float[Tensor, "_ _"]]
) -> dict[str, Tensor]:
    """Return u of every scaled parameter for one document.

    Args:
        model: Frozen; only the parameters of ``scales`` are differentiated, and frozen again.
        tokens: Token ids of the document, at least two.
        scales: 1/√V by parameter name, in the parameter's own orientation.
    """
    parameters = {name: model.get_parameter(name).requires_grad_() for name in scales}
    chosen = torch.ones_like(tokens, dtype=torch.bool)[None]
    with torch.enable_grad():
        loss.backward(tokens[None], chosen)
    updates = {}
    for name, parameter in parameters.items():
        update = parameter.grad.float() / (len(tokens) - 1) * scales[name]
        updates[name] = update / update.square().mean().sqrt().clamp(min=1.0)
        parameter.grad = None
        parameter.requires_grad_(False)
    return updates


@contextmanager
def patched(
    model: nn.Module, updates: Mapping[str, Tensor], *, learning_rate: float, saved: Mapping[str, Tensor]
) -> Iterator[None]:
    """The model after a step of ``learning_rate`` along the updates, inside the block only.

    Args:
        saved: The parameters as they are outside; copied back, since subtracting the step again would round.
    """
    try:
        for name, update in updates.items():
            parameter = model.get_parameter(name)
            parameter.data.sub_(learning_rate * update.to(parameter.dtype))
        yield
    finally:
        for name in updates:
            model.get_parameter(name).data.copy_(saved[name])


def probability_changes(
    model: nn.Module,
    documents: Sequence[Int[Tensor, " _"]],
    queries: tuple[Int[Tensor, "q t"], Bool[Tensor, "q t"]],
    *,
    asked: Sequence[Sequence[int]],
    scales: Mapping[str, Float[Tensor, "_ _"]],
    learning_rate: float,
) -> Iterator[Float[Tensor, " _"]]:
    """Yield, per document, the change of probability of the queries that are asked after it.

    Before any step the queries are run together, once; after a step, those of the document in one batch. A document
    costs a forward pass, a backward pass with weight gradients, and a forward pass of its queries.

    Args:
        queries: Token ids, padded on the right, and which tokens are the completion.
        asked: Per document, rows of ``queries``.
    """
    loss = TokenLoss(model)
    saved = {name: model.get_parameter(name).detach().clone() for name in scales}
    before = torch.cat([torch.exp(-loss.sums(*_rows(queries, rows))) for rows in _parts(len(queries[0]))])
    for document, rows in zip(documents, asked, strict=True):
        updates = training_updates(model, loss, document, scales)
        with patched(model, updates, learning_rate=learning_rate, saved=saved):
            yield torch.exp(-loss.sums(*_rows(queries, rows))) - before[list(rows)]


def _rows(
    queries: tuple[Int[Tensor, "q t"], Bool[Tensor, "q t"]], rows: Sequence[int]
) -> tuple[Int[Tensor, "r s"], Bool[Tensor, "r s"]]:
    """Some queries, without the padding that only longer ones need."""
    tokens, chosen = (part[list(rows)] for part in queries)
    longest = int(chosen.any(dim=0).nonzero().max()) + 1
    return tokens[:, :longest], chosen[:, :longest]


def _parts(num_rows: int) -> Iterator[range]:
    return (range(start, min(start + ROWS_AT_ONCE, num_rows)) for start in range(0, num_rows, ROWS_AT_ONCE))
