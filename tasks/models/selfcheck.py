"""Whether one checkpoint keeps what the pipeline promises: causal, exact, and the same in any company.

A batch pads rows on the right and mixes documents. That is sound where attention is causal and where a kernel gives
a row the same result whatever else is in the batch; some kernels do not, so each promise is measured, not assumed.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import ModelConfig, context_tokens, load_model, read_checkpoint
from trackstar.tasks.models.engine import GradientConfig, model_blocks
from trackstar.tasks.models.loadable import require_loadable
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.batching import Window, pad
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.projection import gaussian_projection

LENGTHS = (33, 9, 17, 5)
PROJECTION = GradientConfig(projection_dim=8)
# Relative: some hundred roundings of the type through the layers of a deep model; projected gradients are float32 in
# any case. A wrong mask is off by 1e-2 to 1.
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}

Vectors = dict[str, Tensor]


@dataclass(frozen=True)
class Check:
    """One promise: the largest relative change that was seen, and the largest that rounding explains."""

    name: str
    change: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.change <= self.limit  # false for NaN


@dataclass(frozen=True)
class SelfCheck:
    """What was measured of one checkpoint, with the attention kernel that ran."""

    attention: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def selfcheck(checkpoint: str, config: ModelConfig) -> SelfCheck:
    """Measure the promises on random tokens.

    Raises:
        InputError: The checkpoint cannot be indexed at all.
    """
    require_loadable(checkpoint, config)
    model = load_model(read_checkpoint(checkpoint, trust_remote_code=config.trust_remote_code), config)
    longest = min(context_tokens(model, config), max(LENGTHS))
    return check_model(model, dtype=config.dtype, sequences=_sequences(model, longest))


def check_model(model: nn.Module, *, dtype: str, sequences: Sequence[Sequence[int]]) -> SelfCheck:
    """Measure the promises on these sequences, of which the first is the longest."""
    blocks = model_blocks(model, PROJECTION)
    limit = TOLERANCE[dtype]
    together = _gradients(model, blocks, sequences)
    alone = [_gradients(model, blocks, [sequence]) for sequence in sequences]
    measured: dict[str, Callable[[], float]] = {
        "a later token changes no earlier prediction": lambda: _causality(model, sequences[0]),
        "padding and company": lambda: _change(together, _joined(alone)),
        "order in the batch": lambda: _change(together, _reversed(_gradients(model, blocks, sequences[::-1]))),
        "number of threads": lambda: _change(together, _with_other_threads(model, blocks, sequences)),
        "autograd in float64": lambda: _change(_autograd(model, blocks, sequences[-1]), alone[-1]),
    }
    checks = tuple(Check(name, measure(), limit) for name, measure in measured.items())
    return SelfCheck(getattr(model.config, "_attn_implementation", None) or "unnamed", checks)


def _sequences(model: nn.Module, longest: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocabulary_size = model.config.get_text_config().vocab_size
    if vocabulary_size < 2 or longest < 2:
        raise InputError(f"a vocabulary of {vocabulary_size} and a context of {longest} leave nothing to predict")
    return [
        torch.randint(0, vocabulary_size, (min(length, longest),), generator=generator).tolist() for length in LENGTHS
    ]


def _gradients(model: nn.Module, blocks: dict[str, list[WeightMatrix]], sequences: Sequence[Sequence[int]]) -> Vectors:
    where = next(model.parameters()).device
    projections = {
        name: BlockProjection(
            [MatrixProjection(m.module, m.shape, *(side.to(where) for side in _sides(m))) for m in matrices], True
        )
        for name, matrices in blocks.items()
    }
    rows = [Window(number, 0, len(sequence)) for number, sequence in enumerate(sequences)]
    tokens, chosen = (torch.from_numpy(array).to(where) for array in pad(rows, sequences, [1] * len(sequences)))
    with GradientEngine(model, projections) as engine:
        return engine(tokens, chosen)[1]


def _sides(matrix: WeightMatrix) -> tuple[Tensor, Tensor]:
    draw = {"seed": PROJECTION.seed, "matrix_name": matrix.name, "projection_dim": PROJECTION.projection_dim}
    m, n = matrix.shape
    return gaussian_projection(side="left", input_dim=m, **draw), gaussian_projection(side="right", input_dim=n, **draw)


def _change(expected: Vectors, found: Vectors) -> float:
    """The largest relative change of any row of any block."""
    changes = [
        (found[name].double() - rows.double()).norm(dim=1) / rows.double().norm(dim=1)
        for name, rows in expected.items()
    ]
    return torch.cat(changes).max().item()  # NaN wins here, as it would not in Python's max


def _joined(parts: Sequence[Vectors]) -> Vectors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _reversed(vectors: Vectors) -> Vectors:
    return {name: rows.flip(0) for name, rows in vectors.items()}


@torch.no_grad()
def _causality(model: nn.Module, sequence: Sequence[int]) -> float:
    """Relative change of the logits before the last token, once that token is another."""
    where = next(model.parameters()).device
    other = [*sequence[:-1], (sequence[-1] + 1) % model.config.get_text_config().vocab_size]
    logits = model(input_ids=torch.tensor([sequence, other], device=where), use_cache=False).logits[:, :-1].double()
    return ((logits[1] - logits[0]).norm() / logits[0].norm()).item()


def _with_other_threads(
    model: nn.Module, blocks: dict[str, list[WeightMatrix]], sequences: Sequence[Sequence[int]]
) -> Vectors:
    with _threads(1 if torch.get_num_threads() > 1 else 2):
        return _gradients(model, blocks, sequences)


@contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _autograd(model: nn.Module, blocks: dict[str, list[WeightMatrix]], sequence: Sequence[int]) -> Vectors:
    """L G Rᵀ with G from the library's own forward pass and autograd's weight gradients: the definition."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    model.set_experts_implementation("eager")  # the other kernels do not take float64
    matrices = [matrix for members in blocks.values() for matrix in members]
    weights = {matrix.parameter: model.get_parameter(matrix.parameter).requires_grad_() for matrix in matrices}
    tokens = torch.tensor([sequence], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits
    loss = cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    projected: dict[str, Tensor] = {}
    for matrix in matrices:
        gradient = matrix.part_of(gradients[matrix.parameter])
        left, right = (side.double().to(gradient.device) for side in _sides(matrix))
        projected[matrix.name] = left @ gradient @ right.T
    return {name: sum(projected[m.name] for m in members).flatten()[None] for name, members in blocks.items()}
