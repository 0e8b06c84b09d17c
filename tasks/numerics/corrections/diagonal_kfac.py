"""K-FAC of the unembedding: the side of the hidden states is whitened whole, that of the vocabulary by its diagonal.

s_i = E[δ_i²]  [v]  of the vocabulary; S [v v] is never formed        A, ε: as in kfac.py

L' = L diag(s + ε_s)^-½        R' = R (A + ε_A I)^-½
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections.correction import Correction, Floors
from trackstar.tasks.numerics.corrections.kfac import difference, eigenvectors, inverse_root, probed
from trackstar.tasks.numerics.gradients import MatrixProjection


@dataclass(frozen=True)
class DiagonalKFAC(Correction):
    """A by its eigenvectors, one a column, and eigenvalues; s as it is."""

    names: ClassVar[tuple[str, ...]] = ("input_basis", "input_values", "output_variances")

    input_basis: Float[Tensor, "n n"]
    input_values: Float[Tensor, " n"]
    output_variances: Float[Tensor, " v"]

    def projection(
        self, module: str, left: Float[Tensor, "k v"] | None, right: Float[Tensor, "k n"] | None, *, floors: Floors
    ) -> MatrixProjection:
        assert left is not None, "the unembedding is projected, or it is not taken"
        s = self.output_variances.double()
        scale = (s + floors.factor_damping * s.mean()).rsqrt()
        A = inverse_root(self.input_basis, self.input_values, right, damping=floors.factor_damping)
        shape = len(s), len(self.input_values)
        return MatrixProjection(module, shape, (left * scale).float(), A.float())

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "DiagonalKFAC":
        return cls(**{name: tensors[name] for name in cls.names})


class DiagonalKroneckerTap:
    """Sums A and s of the unembedding, in float64; it speaks as ``KroneckerTap`` does."""

    def __init__(self, matrix: WeightMatrix, *, device: torch.device) -> None:
        self.module, self.name = matrix.module, matrix.name
        m, n = matrix.shape
        self._A = torch.zeros(n, n, dtype=torch.float64, device=device)
        self._s = torch.zeros(m, dtype=torch.float64, device=device)
        self._num_tokens = 0
        self._first_half: tuple[Tensor, Tensor, int] | None = None

    def begin(self, predicts: Bool[Tensor, "b t"]) -> None:
        """Say which tokens of the next batch predict one whose loss counts; here their δ says so."""

    def keep(self, activations: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        return activations

    def receive(self, kept: Float[Tensor, "b t n"], output_gradients: Float[Tensor, "b t v"]) -> None:
        delta = output_gradients.flatten(0, 1)
        counts = (delta != 0).any(1)
        self.receive_tokens(kept.flatten(0, 1)[counts], delta[counts], counts.nonzero().expand(-1, 2))

    def receive_tokens(
        self, states: Float[Tensor, "T n"], delta: Float[Tensor, "T v"], places: Int[Tensor, "T 2"]
    ) -> None:
        x = states.to(torch.promote_types(states.dtype, torch.float32))
        self._A += x.T @ x
        self._s += delta.square().sum(0, dtype=torch.float64)
        self._num_tokens += len(x)

    def half(self) -> None:
        """Say that half of the sample has been seen."""
        self._first_half = (probed(self._A), self._s.clone(), self._num_tokens)

    def factors(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, " v"]]:
        """Return A and s."""
        return self._A / self._num_tokens, self._s / self._num_tokens

    def differences(self) -> tuple[float, float] | None:
        """Return what two halves of A and of s differ by, relatively; None where a half has no token."""
        assert self._first_half is not None, "a tap is told when half of the sample has been seen"
        A, s, num_tokens = self._first_half
        if not 0 < num_tokens < self._num_tokens:
            return None
        share = num_tokens / self._num_tokens
        return difference(A, probed(self._A), share), difference(s, self._s, share)


def diagonally_decomposed(A: Float[Tensor, "n n"], s: Float[Tensor, " v"]) -> DiagonalKFAC:
    """Return the eigenvectors (float32) and eigenvalues (float64) of A, and s in float32.

    Raises:
        ValueError: A factor is zero or not finite.
    """
    if not 0 < s.mean().item() < float("inf"):
        raise ValueError(f"the mean square of the logits' gradients is {s.mean().item()}; take another sample")
    vectors, values = eigenvectors(A, what="A, of its inputs,")
    return DiagonalKFAC(vectors, values, s.float().cpu())
