"""From a checkpoint and settings to a gradient engine that takes token sequences of any length.

Loading a model costs more than many a shard, so a process keeps the one it used last.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from numpy import ndarray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT
from trackstar.storage.matrices import read_tensors
from trackstar.tasks.models.checkpoint import context_tokens, device, load_model, load_tokenizer
from trackstar.tasks.models.settings import EngineSpec, GradientConfig
from trackstar.tasks.numerics.architecture import WeightMatrix, assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.batching import Window, batches, pad, windows
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.projection import gaussian_projection
from trackstar.tasks.numerics.second_moment import (
    FactoredSecondMoment,
    FullSecondMoment,
    SecondMoment,
    dense,
    folded_scales,
    inverse_root,
)


class Engine:
    """A loaded model, its tokenizer and the gradient engine over it."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self.model = load_model(spec.checkpoint, spec.model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(spec.checkpoint, spec.model)
        self.context = context_tokens(self.model, spec.model)
        self.device = device(spec.model)
        self._gradients = GradientEngine(self.model, block_projections(self.model, spec, device=self.device))

    @property
    def block_dims(self) -> dict[str, int]:
        return self._gradients.block_dims

    def gradients(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        first_targets: Sequence[int],
        advance: Callable[[int], None] = lambda count: None,
    ) -> tuple[ndarray, dict[str, ndarray]]:
        """The summed loss of each sequence [n] and its vector in each block [n d]; a long one is a sum over windows.

        Args:
            sequences: Token ids.
            first_targets: Per sequence, index of the first token whose loss counts; all later ones count too.
            advance: Told how many tokens each batch took.
        """
        losses = torch.zeros(len(sequences), dtype=torch.float64)
        vectors = {name: torch.zeros(len(sequences), dims) for name, dims in self.block_dims.items()}
        cut = [
            window
            for window in windows([len(sequence) for sequence in sequences], context=self.context)
            if window.stop > first_targets[window.document]  # a window of the prompt alone has no loss
        ]
        with self._gradients:
            for batch in batches(cut, token_budget=self._spec.model.token_budget):
                for part, part_losses, part_vectors in self._run(batch, sequences, first_targets):
                    rows = torch.tensor([window.document for window in part])
                    losses.index_add_(0, rows, part_losses.cpu())
                    for name, values in part_vectors.items():
                        vectors[name].index_add_(0, rows, values.cpu())
                advance(sum(window.num_tokens for window in batch))
        return losses.numpy(), {name: values.numpy() for name, values in vectors.items()}

    def _run(
        self, batch: list[Window], sequences: Sequence[Sequence[int]], first_targets: Sequence[int]
    ) -> Iterator[tuple[list[Window], Tensor, dict[str, Tensor]]]:
        """Run a batch; one that does not fit in memory is run in halves."""
        tokens, chosen = (torch.from_numpy(array) for array in pad(batch, sequences, first_targets))
        try:
            yield batch, *self._gradients(tokens.to(self.device), chosen.to(self.device))
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from self._run(half, sequences, first_targets)


@contextmanager
def open_engine(spec: EngineSpec) -> Iterator[Engine]:
    """The engine of a spec, to one user at a time: hooks and activations belong to the model, not to a thread."""
    with _lock:
        yield _engine(spec.model_dump_json())


def block_projections(model: nn.Module, spec: EngineSpec, *, device: torch.device) -> dict[str, BlockProjection]:
    """The projection of every block, with 1/√V folded in where V factors.

    Raises:
        InputError: The model has a layer that is not understood.
    """
    second_moments = read_second_moment_artifact(spec)
    return {
        name: BlockProjection(
            [_projection(matrix, second_moments.get(matrix.name), spec.gradient, device) for matrix in matrices],
            is_pooled=spec.gradient.projection != "none" and spec.gradient.pooling == "sum",
        )
        for name, matrices in model_blocks(model, spec.gradient).items()
    }


def model_blocks(model: nn.Module, config: GradientConfig) -> dict[str, list[WeightMatrix]]:
    try:
        return assign_blocks(find_weight_matrices(model), num_layer_groups=config.num_layer_blocks)
    except ValueError as error:
        raise InputError(str(error)) from error


def dense_scales(model: nn.Module, spec: EngineSpec, *, device: torch.device) -> dict[str, Tensor]:
    """1/√V by parameter name, in the parameter's own orientation; 1 where gradients are left uncorrected."""
    second_moments = read_second_moment_artifact(spec)
    scales: dict[str, Tensor] = {}
    for matrices in model_blocks(model, spec.gradient).values():
        for matrix in matrices:
            if matrix.parameter not in scales:
                scales[matrix.parameter] = torch.empty(model.get_parameter(matrix.parameter).shape, device=device)
            V = second_moments.get(matrix.name)
            part = matrix.part_of(scales[matrix.parameter])
            part.copy_(torch.ones(matrix.shape) if V is None else _dense_scale(V, spec.gradient.epsilon))
    return scales


def read_second_moment_artifact(spec: EngineSpec) -> Mapping[str, SecondMoment]:
    """V of every matrix, or nothing where gradients are left uncorrected."""
    if spec.second_moment is None:
        return {}
    tensors = read_tensors(spec.second_moment.path(spec.index), SECOND_MOMENT)
    names = sorted({key.rpartition(".")[0] for key in tensors})
    return {
        name: FullSecondMoment(tensors[f"{name}.values"])
        if f"{name}.values" in tensors
        else FactoredSecondMoment(tensors[f"{name}.row"], tensors[f"{name}.column"])
        for name in names
    }


def _projection(
    matrix: WeightMatrix, V: SecondMoment | None, config: GradientConfig, device: torch.device
) -> MatrixProjection:
    if config.projection == "none":
        scale = None if V is None else _dense_scale(V, config.epsilon).to(device)
        return MatrixProjection(matrix.module, matrix.shape, scale=scale)
    m, n = matrix.shape
    draw = {"seed": config.seed, "matrix_name": matrix.name, "projection_dim": config.projection_dim}
    left = gaussian_projection(side="left", input_dim=m, **draw)
    right = gaussian_projection(side="right", input_dim=n, **draw)
    scale = None
    if isinstance(V, FactoredSecondMoment):
        row_scale, column_scale = folded_scales(V, epsilon=config.epsilon)
        left, right = (left * row_scale).float(), (right * column_scale).float()
    elif V is not None:
        scale = _dense_scale(V, config.epsilon).to(device)
    return MatrixProjection(matrix.module, matrix.shape, left.to(device), right.to(device), scale)


def _dense_scale(V: SecondMoment, epsilon: float) -> Tensor:
    full = V if isinstance(V, FullSecondMoment) else FullSecondMoment(dense(V))
    return inverse_root(full, epsilon=epsilon).float()


_lock = threading.Lock()


@lru_cache(maxsize=1)
def _engine(spec_json: str) -> Engine:
    return Engine(EngineSpec.model_validate_json(spec_json))
