"""Influence functions with the damped Gauss-Newton Hessian, solved by conjugate gradients; for small models.

    θ    [D]    the attributed matrices, flattened one after another            z_t  [v]  logits that predict a token
    J_t  [v D]  ∂z_t / ∂θ                    p_t = softmax(z_t)                 n         number of documents

    H = (1/n) Σ_t J_tᵀ (diag(p_t) − p_t p_tᵀ) J_t       over every predicted token of every document
    x_q = (H + δ I)^-1 ∇L(z_q)                          score(m, q) = ∇L(z_m) · x_q

Koh and Liang 2017, Eq. 2, with the sign that gives proponents positive scores. Their Hessian of the training loss is
indefinite away from a minimum, and the solve then means nothing; the Gauss-Newton matrix is its part that is never
negative, and equals it where the model fits (Martens 2020; Grosse et al. 2023 choose it for the same reason).
Nothing is sampled: H enters as products H v, exact, one forward and one backward pass over the corpus each.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.functional import cross_entropy

Batch = tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]  # tokens, padded on the right, and whose losses count
Parameters = dict[str, Tensor]
Product = Callable[[Float[Tensor, "q D"]], Float[Tensor, "q D"]]


class CurvedLoss:
    """Losses of token sequences as functions of some parameters of a model, with their derivatives.

    Args:
        model: Without dropout, in the precision to compute in.
        names: Parameters that θ is made of.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model.eval().requires_grad_(False)
        self._parameters: Parameters = {name: model.get_parameter(name).detach() for name in names}

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters.values())

    def gradients(self, batch: Batch) -> Float[Tensor, "b D"]:
        """Return ∇L of each row."""
        by_name = jacrev(lambda parameters: self._losses(parameters, batch))(self._parameters)
        return _flatten(by_name)

    def directional(self, batch: Batch, directions: Float[Tensor, "q D"]) -> Float[Tensor, "b q"]:
        """Return ∇L · x of each row and direction, without forming a gradient."""

        def along(direction: Tensor) -> Tensor:
            tangent = self._unflatten(direction)
            return jvp(lambda parameters: self._losses(parameters, batch), (self._parameters,), (tangent,))[1]

        return vmap(along)(directions).T

    def gauss_newton_product(self, batch: Batch, vectors: Float[Tensor, "q D"]) -> Float[Tensor, "q D"]:
        """Return ``Σ_t J_tᵀ (diag(p_t) − p_t p_tᵀ) J_t v`` over the batch's counted tokens, for every row v."""

        def logits(parameters: Parameters) -> Tensor:
            return self._logits(parameters, batch)

        z, pull_back = vjp(logits, self._parameters)
        p = z.softmax(-1)

        def product(vector: Tensor) -> Tensor:
            Jv = jvp(logits, (self._parameters,), (self._unflatten(vector),))[1]
            HJv = p * (Jv - (p * Jv).sum(-1, keepdim=True))
            return _flatten_one(pull_back(HJv)[0])

        return vmap(product)(vectors)

    def _losses(self, parameters: Parameters, batch: Batch) -> Float[Tensor, " b"]:
        tokens, chosen = batch
        rows = chosen[:, 1:].nonzero()[:, 0]
        token_losses = cross_entropy(self._logits(parameters, batch), tokens[:, 1:][chosen[:, 1:]], reduction="none")
        return torch.zeros(len(tokens), dtype=token_losses.dtype).index_add(0, rows, token_losses)

    def _logits(self, parameters: Parameters, batch: Batch) -> Float[Tensor, "T v"]:
        tokens, chosen = batch
        options = {"input_ids": tokens, "use_cache": False}
        return functional_call(self._model, parameters, kwargs=options).logits[:, :-1][chosen[:, 1:]]

    def _unflatten(self, vector: Float[Tensor, " D"]) -> Parameters:
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        parts = zip(self._parameters.items(), vector.split(sizes), strict=True)
        return {name: part.view_as(parameter) for (name, parameter), part in parts}


def conjugate_gradients(
    product: Product,
    right_sides: Float[Tensor, "q D"],
    *,
    tolerance: float,
    max_iterations: int,
    precondition: Product = lambda residual: residual,
) -> tuple[Float[Tensor, "q D"], int]:
    """Solve ``A x = b`` for every row b at once; return the rows x and the number of iterations.

    Args:
        product: ``v ↦ A v`` for rows v; A is symmetric and positive definite.
        tolerance: Of ‖A x − b‖ / ‖b‖, reached by every row.
        precondition: ``v ↦ M v`` for rows v; M is symmetric and positive definite, and the closer to A^-1 the fewer
            iterations.

    Raises:
        ValueError: A row has not converged after ``max_iterations``.
    """
    x, residual = torch.zeros_like(right_sides), right_sides.clone()
    direction = precondition(residual)
    inner, squared = (residual * direction).sum(1), residual.square().sum(1)
    wanted = tolerance**2 * squared
    for iteration in range(max_iterations + 1):
        active = squared > wanted  # a row that is done stands still, and never divides by zero
        if not active.any():
            return x, iteration
        A_direction = product(direction)
        step = torch.where(active, inner / (direction * A_direction).sum(1), 0.0)[:, None]
        x = x + step * direction
        residual = residual - step * A_direction
        z, previous = precondition(residual), inner
        inner, squared = (residual * z).sum(1), residual.square().sum(1)
        direction = z + torch.where(active, inner / previous, 0.0)[:, None] * direction
    worst = (squared / wanted).max().sqrt().item() * tolerance
    raise ValueError(
        f"conjugate gradients left a residual of {worst:.1e} after {max_iterations} iterations, expected "
        f"{tolerance:.0e}; raise the damping, which decides the condition, or allow more iterations"
    )


def mean_eigenvalue(
    product: Product,
    *,
    num_parameters: int,
    num_probes: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> float:
    """Return Hutchinson's estimate ``E[vᵀ H v] / D`` over random sign vectors."""
    signs = torch.randint(0, 2, (num_probes, num_parameters), generator=generator) * 2 - 1
    probes = signs.to(dtype)
    return float((probes * product(probes)).sum(1).mean() / num_parameters)


def _flatten(by_name: Mapping[str, Float[Tensor, "b ..."]]) -> Float[Tensor, "b D"]:
    return torch.cat([values.flatten(1) for values in by_name.values()], dim=1)


def _flatten_one(by_name: Mapping[str, Tensor]) -> Float[Tensor, " D"]:
    return torch.cat([values.flatten() for values in by_name.values()])
