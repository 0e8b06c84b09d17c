"""Tail-patch: how one more training step on one document changes what the model says.

    g  [m n]  gradient of the document's mean token loss        u = g / √V, at most of root mean square 1
    θ' = θ − η u                                                change = p_θ'(completion) − p_θ(completion)

Chang et al. 2024, Section 4 ("tail-patch score"): a method-free measure of influence. The step is Adafactor's without
momentum, from the checkpoint's own second moment, on the traced matrices; the model is put back exactly as it was.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trackstar.tasks.numerics.loss import TokenLoss

ROWS_AT_ONCE = 64


@contextmanager
def stepped(
    model: nn.Module, loss: TokenLoss, document: Int[Tensor, " t"], step: "Step", *, saved: Mapping[str, Tensor]
) -> Iterator[None]:
    """The model after one training step on a document, inside the block only.

    A parameter is stepped as soon as the backward pass has its gradient, which it then needs no more: the gradients are
    never all there, and the next one takes the memory of the last.

    Args:
        model: Frozen; the scaled parameters are differentiated meanwhile, and frozen again.
        document: Token ids, at least two.
        saved: The parameters as they are outside; copied back, since subtracting the step again would round.
    """
    parameters = {name: model.get_parameter(name) for name in step.scales}
    chosen = torch.ones_like(document, dtype=torch.bool)[None]
    hooks = [
        parameter.requires_grad_().register_post_accumulate_grad_hook(step.hook(name, num_targets=len(document) - 1))
        for name, parameter in parameters.items()
    ]
    try:
        with torch.enable_grad():
            loss.backward(document[None], chosen)
        yield
    finally:
        for hook, (name, parameter) in zip(hooks, parameters.items(), strict=True):
            hook.remove()
            parameter.requires_grad_(False).copy_(saved[name])


@dataclass(frozen=True)
class Step:
    """A step θ − η u of Adafactor without momentum.

    Attributes:
        scales: 1/√V by parameter name, in the parameter's own orientation; no other parameter is stepped.
        learning_rate: η, the root mean square of a step at most.
    """

    scales: Mapping[str, Float[Tensor, "_ _"]]
    learning_rate: float

    def hook(self, name: str, *, num_targets: int) -> Callable[[Tensor], None]:
        """What takes the step of one parameter once its ``grad`` is that of the summed loss of so many tokens."""

        def take(parameter: Tensor) -> None:
            update = parameter.grad.float().mul_(self.scales[name])  # u times num_targets, where it is not clipped
            root_mean_square = update.norm() / math.sqrt(update.numel())
            divisor = root_mean_square.clamp(min=num_targets)
            parameter.data.addcmul_(update.to(parameter.dtype), divisor.reciprocal(), value=-self.learning_rate)
            parameter.grad = None

        return take


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
    loss, step = TokenLoss(model), Step(scales, learning_rate)
    saved = {name: model.get_parameter(name).detach().clone() for name in scales}
    before = torch.cat([torch.exp(-loss.sums(*_rows(queries, rows))) for rows in _parts(len(queries[0]))])
    for document, rows in zip(documents, asked, strict=True):
        with stepped(model, loss, document, step, saved=saved):
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
