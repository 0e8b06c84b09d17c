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
def patched(model: nn.Module, updates: Mapping[str, Tensor], *, learning_rate: float) -> Iterator[None]:
    """The model after a step of ``learning_rate`` along the updates, inside the block only."""
    before = {name: model.get_parameter(name).detach().clone() for name in updates}
    try:
        for name, update in updates.items():
            parameter = model.get_parameter(name)
            parameter.data.sub_(learning_rate * update.to(parameter.dtype))
        yield
    finally:
        for name, value in before.items():
            model.get_parameter(name).data.copy_(value)


def probability_changes(
    model: nn.Module,
    documents: Sequence[Int[Tensor, " _"]],
    queries: Sequence[tuple[Int[Tensor, "_ _"], Bool[Tensor, "_ _"]]],
    *,
    scales: Mapping[str, Float[Tensor, "_ _"]],
    learning_rate: float,
) -> Iterator[Float[Tensor, " _"]]:
    """Yield, per document, the change of probability of each of its own queries."""
    loss = TokenLoss(model)
    for document, (tokens, chosen) in zip(documents, queries, strict=True):
        before = torch.exp(-loss.sums(tokens, chosen))
        with patched(model, training_updates(model, loss, document, scales), learning_rate=learning_rate):
            yield torch.exp(-loss.sums(tokens, chosen)) - before
