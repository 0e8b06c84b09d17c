"""From a checkpoint and settings to a gradient engine that takes token sequences of any length.

Loading a model costs more than many a shard, so a process keeps the one it used last.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from numpy import ndarray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.layout import tensors_file
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_tensors
from trackstar.tasks.models.checkpoint import context_tokens, device, load_model, load_tokenizer
from trackstar.tasks.models.settings import EngineSpec, GradientConfig
from trackstar.tasks.numerics.architecture import WeightMatrix, assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.batching import Targets, Window, batches, has_target, pad, windows
from trackstar.tasks.numerics.corrections import from_tensors
from trackstar.tasks.numerics.corrections.correction import Correction, ElementwiseCorrection, Floors
from trackstar.tasks.numerics.corrections.none import Uncorrected
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.projection import random_projection
from trackstar.tasks.numerics.unembedding import UNEMBEDDING, find_unembedding
from trackstar.tasks.runtime.stop import check_stop


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
        first_targets: Sequence[Targets],
        advance: Callable[[int], None] = lambda count: None,
    ) -> tuple[ndarray, dict[str, ndarray]]:
        """The summed loss of each sequence [n] and its vector in each block [n d]; a long one is a sum over windows.

        Args:
            sequences: Token ids.
            first_targets: Per sequence, index of the first token whose loss counts, all later ones counting too, or a
                mask of those that count.
            advance: Told how many tokens each batch took.
        """
        losses = torch.zeros(len(sequences), dtype=torch.float64)
        vectors = {name: torch.zeros(len(sequences), dims) for name, dims in self.block_dims.items()}
        cut = [
            window
            for window in windows([len(sequence) for sequence in sequences], context=self.context)
            if has_target(window, first_targets[window.document])  # a window of the prompt alone has no loss
        ]
        with self._gradients:
            for batch in batches(cut, token_budget=self._spec.model.token_budget):
                check_stop()
                for part, part_losses, part_vectors in self._run(batch, sequences, first_targets):
                    rows = torch.tensor([window.document for window in part])
                    losses.index_add_(0, rows, part_losses.cpu())
                    for name, values in part_vectors.items():
                        vectors[name].index_add_(0, rows, values.cpu())
                advance(sum(window.num_tokens for window in batch))
        return losses.numpy(), {name: values.numpy() for name, values in vectors.items()}

    def _run(
        self, batch: list[Window], sequences: Sequence[Sequence[int]], first_targets: Sequence[Targets]
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
    """The projection of every block, with what of the correction folds into it.

    Raises:
        InputError: The model has a layer that is not understood.
    """
    corrections = read_corrections(spec, spec.corrected_by)
    projections = {
        name: [_projection(matrix, corrections.get(matrix.name), spec.gradient) for matrix in matrices]
        for name, matrices in model_blocks(model, spec.gradient).items()
    }
    return {
        name: BlockProjection(
            [matrix.to(device) for matrix in matrices if matrix.num_dims],  # of some matrices no axis is kept
            is_pooled=spec.gradient.projection == "two_sided" and spec.gradient.pooling == "sum",
        )
        for name, matrices in projections.items()
    }


def floors(config: GradientConfig) -> Floors:
    """What keeps a correction from dividing by nearly nothing."""
    return Floors(config.epsilon, config.factor_damping)


def model_blocks(model: nn.Module, config: GradientConfig) -> dict[str, list[WeightMatrix]]:
    """The matrices of each block; the unembedding is one of its own, and the last."""
    try:
        matrices = [matrix for matrix in find_weight_matrices(model) if matrix.kind in config.parameters]
        blocks = assign_blocks(matrices, num_layer_groups=config.num_layer_blocks)
        own = {UNEMBEDDING: [find_unembedding(model)]} if UNEMBEDDING in config.parameters else {}
        return {**blocks, **own}
    except ValueError as error:
        raise InputError(str(error)) from error


def decoder_matrices(model: nn.Module, config: GradientConfig) -> list[WeightMatrix]:
    """What is stepped and solved for: the matrices of the decoder layers, all where only the unembedding is taken."""
    kinds = tuple(kind for kind in config.parameters if kind != UNEMBEDDING) or ("attention", "mlp")
    blocks = model_blocks(model, config.model_copy(update={"parameters": kinds}))
    return [matrix for matrices in blocks.values() for matrix in matrices]


def dense_scales(model: nn.Module, spec: EngineSpec, *, device: torch.device) -> dict[str, Tensor]:
    """1/√V by parameter name, in the parameter's own orientation; 1 where there is no V."""
    second_moments = read_corrections(spec, [spec.second_moment] if spec.second_moment else [])
    scales: dict[str, Tensor] = {}
    for matrix in decoder_matrices(model, spec.gradient):
        if matrix.parameter not in scales:
            scales[matrix.parameter] = torch.empty(model.get_parameter(matrix.parameter).shape, device=device)
        V: ElementwiseCorrection = second_moments.get(matrix.name) or Uncorrected(matrix.shape)
        matrix.part_of(scales[matrix.parameter]).copy_(V.scale(floors=floors(spec.gradient)))
    return scales


def read_corrections(spec: EngineSpec, kept: Sequence[Artifact]) -> dict[str, Correction]:
    """The correction of every matrix by its name, from all that is kept of it; of none where nothing is."""
    tensors: dict[str, Tensor] = {}
    for artifact in kept:
        tensors |= read_tensors(artifact.path(spec.index), tensors_file(artifact.name))
    return from_tensors(tensors)


def _projection(matrix: WeightMatrix, correction: Correction | None, config: GradientConfig) -> MatrixProjection:
    left = right = None
    if config.projection == "two_sided":
        draw = {"seed": config.seed, "matrix_name": matrix.name, "projection_dim": config.projection_dim}
        left, right = (
            random_projection(config.projection_rows, side=side, input_dim=dim, **draw)
            for side, dim in zip(("left", "right"), matrix.shape, strict=True)
        )
    correction = correction or Uncorrected(matrix.shape)
    return correction.projection(matrix.module, left, right, floors=floors(config))


_lock = threading.Lock()


@lru_cache(maxsize=1)
def _engine(spec_json: str) -> Engine:
    return Engine(EngineSpec.model_validate_json(spec_json))
