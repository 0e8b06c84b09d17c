"""A perceptron with one hidden layer: its training by Adam, its gradient for each example, its exact Hessian.

    h = relu(W₁ x + b₁)     z = W₂ h + b₂     loss = −log softmax(z)_y

    δ₂ = softmax(z) − e_y               ∂loss/∂W₂ = δ₂ hᵀ     ∂loss/∂b₂ = δ₂
    δ₁ = (W₂ᵀ δ₂) ⊙ [h > 0]             ∂loss/∂W₁ = δ₁ xᵀ     ∂loss/∂b₁ = δ₁

Every parameter is a matrix [m n]; a bias is one of a single column, as if its input were always 1, so that what holds
for a matrix (V, projection) holds for it too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

HIDDEN_WEIGHT, HIDDEN_BIAS = "hidden.weight", "hidden.bias"
OUTPUT_WEIGHT, OUTPUT_BIAS = "output.weight", "output.bias"

Parameters = dict[str, Tensor]  # [m n]: each parameter has its own m and n
Gradients = dict[str, Tensor]  # [b m n]


@dataclass(frozen=True)
class Schedule:
    """How long and in which steps Adam trains."""

    num_steps: int
    batch_size: int
    learning_rate: float


def initial_parameters(num_inputs: int, *, num_hidden: int, num_classes: int, generator: torch.Generator) -> Parameters:
    """Weights N(0, 2/n) into the hidden layer and N(0, 1/n) out of it, biases 0."""
    return {
        HIDDEN_WEIGHT: torch.randn(num_hidden, num_inputs, generator=generator) * math.sqrt(2 / num_inputs),
        HIDDEN_BIAS: torch.zeros(num_hidden, 1),
        OUTPUT_WEIGHT: torch.randn(num_classes, num_hidden, generator=generator) / math.sqrt(num_hidden),
        OUTPUT_BIAS: torch.zeros(num_classes, 1),
    }


def logits(parameters: Parameters, x: Float[Tensor, "b p"]) -> Float[Tensor, "b c"]:
    """z of each row."""
    hidden = torch.relu(x @ parameters[HIDDEN_WEIGHT].T + parameters[HIDDEN_BIAS].T)
    return hidden @ parameters[OUTPUT_WEIGHT].T + parameters[OUTPUT_BIAS].T


def accuracy(parameters: Parameters, x: Float[Tensor, "b p"], y: Int[Tensor, " b"]) -> float:
    return (logits(parameters, x).argmax(1) == y).double().mean().item()


def adam_steps(
    parameters: Parameters,
    x: Float[Tensor, "n p"],
    y: Int[Tensor, " n"],
    *,
    schedule: Schedule,
    generator: torch.Generator,
) -> Iterator[tuple[int, Parameters]]:
    """Train ``parameters`` in place; after each step yield its number and V, Adam's own ``exp_avg_sq``."""
    leaves = list(parameters.values())
    optimizer = torch.optim.Adam([leaf.requires_grad_() for leaf in leaves], lr=schedule.learning_rate)
    batches = _batches(len(x), schedule.batch_size, generator)
    for step in range(1, schedule.num_steps + 1):
        rows = next(batches)
        optimizer.zero_grad()
        cross_entropy(logits(parameters, x[rows]), y[rows]).backward()
        optimizer.step()
        yield step, {name: optimizer.state[leaf]["exp_avg_sq"] for name, leaf in parameters.items()}
    for leaf in leaves:
        leaf.requires_grad_(False)


def example_gradients(parameters: Parameters, x: Float[Tensor, "b p"], y: Int[Tensor, " b"]) -> Gradients:
    """The gradient of each example's own loss, as outer products of what went in and what came back."""
    hidden = torch.relu(x @ parameters[HIDDEN_WEIGHT].T + parameters[HIDDEN_BIAS].T)
    z = hidden @ parameters[OUTPUT_WEIGHT].T + parameters[OUTPUT_BIAS].T
    delta_2 = torch.softmax(z, dim=1) - one_hot(y, z.shape[1])
    delta_1 = (delta_2 @ parameters[OUTPUT_WEIGHT]) * (hidden > 0)
    return {
        HIDDEN_WEIGHT: delta_1[:, :, None] * x[:, None, :],
        HIDDEN_BIAS: delta_1[:, :, None],
        OUTPUT_WEIGHT: delta_2[:, :, None] * hidden[:, None, :],
        OUTPUT_BIAS: delta_2[:, :, None],
    }


def projected_hessian(
    parameters: Parameters,
    x: Float[Tensor, "n p"],
    y: Int[Tensor, " n"],
    *,
    directions: Gradients,
) -> Float[Tensor, "d d"]:
    """Return ``A H Aᵀ``, H the Hessian of the mean loss and A's rows the directions, in float64.

    One Hessian-vector product a direction, H a_i = ∂⟨∂loss, a_i⟩, so that H itself is never formed.
    """
    leaves = {name: value.double().requires_grad_() for name, value in parameters.items()}
    rows = [direction.double() for direction in directions.values()]
    loss = cross_entropy(logits(leaves, x.double()), y)
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    flat = torch.cat([row.flatten(1) for row in rows], dim=1)
    products = []
    for index in range(len(flat)):
        slope = sum((g * row[index]).sum() for g, row in zip(gradients, rows, strict=True))
        curved = torch.autograd.grad(slope, list(leaves.values()), retain_graph=True)
        products.append(flat @ torch.cat([part.flatten() for part in curved]))
    H = torch.stack(products)
    return (H + H.T) / 2  # symmetric but for rounding


def _batches(num_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of shuffled rows without end; what is left over of a pass is dropped."""
    batch_size = min(batch_size, num_rows)
    while True:
        order = torch.randperm(num_rows, generator=generator)
        yield from order[: num_rows // batch_size * batch_size].split(batch_size)
