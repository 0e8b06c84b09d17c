"""From a checkpoint and settings to a gradient engine that takes token sequences of any length.

Loading a model costs more than many a shard, so a process keeps the one it used last.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.layout import tensors_file
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_tensors
from trackstar.tasks.models.checkpoint import (
    Checkpoint,
    ModelConfig,
    context_tokens,
    device,
    load_model,
    load_tokenizer,
)
from trackstar.tasks.numerics.architecture import WeightMatrix, assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.batching import Window, batches, pad, windows
from trackstar.tasks.numerics.corrections import from_tensors
from trackstar.tasks.numerics.corrections.correction import Correction, ElementwiseCorrection, Floors
from trackstar.tasks.numerics.corrections.none import Uncorrected
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.projection import gaussian_projection

ADDED_SETTINGS = ("parameters",)  # since the first indexes, which are those of the defaults


class GradientConfig(BaseModel):
    """Which gradients are taken, what they are corrected by, and how they are projected."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Gradients")

    correction: Literal["v", "kfac", "ekfac", "none"] = Field(
        "v",
        description="v: divided by √V; kfac: half-whitened on both sides by Kronecker factors of the Fisher matrix; "
        "ekfac: by variances in their eigenbases; none: left as they are.",
    )
    factor_damping: float = Field(
        0.01, gt=0, description="Added to each Kronecker factor, relative to its mean eigenvalue; kfac and ekfac only."
    )
    parameters: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="Which weight matrices of the decoder layers."
    )
    projection: Literal["two_sided", "none"] = Field(
        "two_sided", description="two_sided: random L G Rᵀ per matrix; none: whole gradients, for small models."
    )
    projection_dim: int = Field(64, ge=1, description="k: a block has k² dimensions.")
    num_layer_blocks: int = Field(
        8, ge=1, description="Contiguous groups of layers; each has one block for attention and one for MLP."
    )
    pooling: Literal["sum", "concatenate"] = Field(
        "sum", description="Whether a block's matrices share its k² dimensions or have k² each."
    )
    epsilon: float = Field(1e-8, gt=0, lt=1, description="Floor of √V, relative to the root of V's mean.")
    seed: int = Field(0, ge=0, description="Seed of the projections.")

    @property
    def floors(self) -> Floors:
        return Floors(self.epsilon, self.factor_damping)

    @property
    def has_kronecker_factors(self) -> bool:
        return self.correction in ("kfac", "ekfac")

    def identity(self) -> dict[str, Any]:
        """What determines a gradient, without what takes no part: an index keeps its shards when a setting is added."""
        unused = {"correction", "factor_damping"} if not self.has_kronecker_factors else set()
        added = {name for name in ADDED_SETTINGS if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=unused | added)


class EngineSpec(BaseModel):
    """All that determines a gradient: the checkpoint, how it is run, its correction, and the projection.

    Attributes:
        second_moment: V, which corrects gradients or, beside another correction, the steps of tail-patch alone.
        kronecker: What K-FAC or EK-FAC was estimated as, one artifact after another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    checkpoint: Checkpoint
    model: ModelConfig
    gradient: GradientConfig
    second_moment: Artifact | None
    kronecker: tuple[Artifact, ...] = ()

    @property
    def corrected_by(self) -> tuple[Artifact, ...]:
        """What is kept of the correction of gradients."""
        if self.gradient.has_kronecker_factors:
            return self.kronecker
        return (self.second_moment,) if self.second_moment and self.gradient.correction == "v" else ()

    def uncorrected(self) -> "EngineSpec":
        """The same gradients as they are."""
        gradient = self.gradient.model_copy(update={"correction": "none"})
        return self.model_copy(update={"gradient": gradient, "second_moment": None, "kronecker": ()})

    def inputs(self) -> dict[str, Any]:
        """What of it determines bytes: neither the device nor the size of a batch."""
        return {
            "checkpoint": self.checkpoint.digest,
            "dtype": self.model.dtype,
            "context_tokens": self.model.context_tokens,
            "gradient": self.gradient.identity(),
            "second_moment": V.digest if (V := self.second_moment) and self.gradient.correction == "v" else None,
            **({"kronecker": [artifact.digest for artifact in self.kronecker]} if self.kronecker else {}),
        }


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
    """The projection of every block, with what of the correction folds into it.

    Raises:
        InputError: The model has a layer that is not understood.
    """
    corrections = read_corrections(spec, spec.corrected_by)
    return {
        name: BlockProjection(
            [_projection(matrix, corrections.get(matrix.name), spec.gradient).to(device) for matrix in matrices],
            is_pooled=spec.gradient.projection != "none" and spec.gradient.pooling == "sum",
        )
        for name, matrices in model_blocks(model, spec.gradient).items()
    }


def model_blocks(model: nn.Module, config: GradientConfig) -> dict[str, list[WeightMatrix]]:
    try:
        matrices = [matrix for matrix in find_weight_matrices(model) if matrix.kind in config.parameters]
        return assign_blocks(matrices, num_layer_groups=config.num_layer_blocks)
    except ValueError as error:
        raise InputError(str(error)) from error


def dense_scales(model: nn.Module, spec: EngineSpec, *, device: torch.device) -> dict[str, Tensor]:
    """1/√V by parameter name, in the parameter's own orientation; 1 where there is no V."""
    second_moments = read_corrections(spec, [spec.second_moment] if spec.second_moment else [])
    scales: dict[str, Tensor] = {}
    for matrices in model_blocks(model, spec.gradient).values():
        for matrix in matrices:
            if matrix.parameter not in scales:
                scales[matrix.parameter] = torch.empty(model.get_parameter(matrix.parameter).shape, device=device)
            V: ElementwiseCorrection = second_moments.get(matrix.name) or Uncorrected(matrix.shape)
            matrix.part_of(scales[matrix.parameter]).copy_(V.scale(floors=spec.gradient.floors))
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
            gaussian_projection(side=side, input_dim=dim, **draw)
            for side, dim in zip(("left", "right"), matrix.shape, strict=True)
        )
    correction = correction or Uncorrected(matrix.shape)
    return correction.projection(matrix.module, left, right, floors=config.floors)


_lock = threading.Lock()


@lru_cache(maxsize=1)
def _engine(spec_json: str) -> Engine:
    return Engine(EngineSpec.model_validate_json(spec_json))
