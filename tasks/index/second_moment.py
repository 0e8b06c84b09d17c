"""The second moment V that corrects gradients: the optimizer's, or an estimate where a checkpoint kept none."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from trackstar.storage.corpus import CorpusShard, read_documents
from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import write_tensors
from trackstar.tasks.models.checkpoint import (
    Checkpoint,
    ModelConfig,
    context_tokens,
    device,
    load_model,
    load_tokenizer,
)
from trackstar.tasks.models.engine import EngineSpec, GradientConfig, model_blocks
from trackstar.tasks.models.optimizer_state import read_second_moments
from trackstar.tasks.models.tokens import tokenize_documents
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.batching import batches, pad, windows
from trackstar.tasks.numerics.corrections import to_tensors
from trackstar.tasks.numerics.corrections.correction import Correction
from trackstar.tasks.numerics.corrections.factored_v import EstimationTap, FactoredV, estimation_taps
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, factor
from trackstar.tasks.numerics.taps import TappedModel
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, stage

Mode = Literal["auto", "factored", "full", "estimated", "none"]


class SecondMomentConfig(BaseModel):
    """What gradients are divided by."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Second moment")

    mode: Mode = Field(
        "auto",
        description="auto: the optimizer's, factored, if the checkpoint has it, else estimated; factored: V as row and "
        "column means; full: Adam's V, element by element; estimated: from a sample of the corpus; none: no division.",
    )
    sample_size: int = Field(256, ge=1, description="Documents an estimate is made from.")
    seed: int = Field(0, ge=0, description="Seed of that sample.")

    def resolve(self, checkpoint: Checkpoint) -> Mode:
        """The mode without ``auto``."""
        if self.mode == "auto":
            return "factored" if checkpoint.optimizer_digest else "estimated"
        return self.mode


class SecondMomentRequest(StageRequest):
    """V of one checkpoint. ``sample`` names the corpus shards that an estimate may draw from."""

    kind: ClassVar[str] = "second_moment"
    version: ClassVar[int] = 2

    checkpoint: Checkpoint
    model: ModelConfig
    gradient: GradientConfig
    mode: Literal["factored", "full", "estimated"]
    sample: tuple[CorpusShard, ...] = ()
    sample_size: int = 0
    seed: int = 0
    text_column: str = "text"

    @property
    def label(self) -> str:
        return f"second moment of {self.checkpoint.name} ({self.mode})"

    def inputs(self) -> dict[str, Any]:
        common = {"checkpoint": self.checkpoint.digest, "mode": self.mode}
        if self.mode != "estimated":
            return {**common, "optimizer": self.checkpoint.optimizer_digest}
        return {
            **common,
            "dtype": self.model.dtype,
            "context_tokens": self.model.context_tokens,
            "sample": [shard.identity for shard in self.sample],
            "sample_size": self.sample_size,
            "seed": self.seed,
            "text_column": self.text_column,
        }


def second_moment(
    config: SecondMomentConfig,
    engine: EngineSpec,
    *,
    shards: Sequence[CorpusShard],
    text_column: str,
    existing: EngineSpec | None,
) -> Artifact | None:
    """V for an engine that has none yet, or None where gradients are not to be divided.

    An estimate is made once in the life of an index: a corpus that grows must not change the gradients it has.
    """
    mode = config.resolve(engine.checkpoint)
    if mode == "none":
        return None
    if mode == "estimated" and existing is not None and _is_estimate(existing, engine):
        return existing.second_moment
    sample: dict[str, Any] = {}
    if mode == "estimated":
        sample = {"sample": tuple(shards), "text_column": text_column, **config.model_dump(exclude={"mode"})}
    common = {"index": engine.index, "checkpoint": engine.checkpoint, "model": engine.model}
    return write_second_moment(SecondMomentRequest(gradient=engine.gradient, mode=mode, **common, **sample))


def _is_estimate(existing: EngineSpec, engine: EngineSpec) -> bool:
    has_estimate = existing.second_moment is not None and existing.second_moment.facts["mode"] == "estimated"
    return has_estimate and existing.checkpoint.digest == engine.checkpoint.digest


@stage
def write_second_moment(request: SecondMomentRequest, draft: Draft) -> None:
    """Read V from the checkpoint's optimizer state, or estimate it."""
    model = load_model(request.checkpoint, request.model)
    matrices = [matrix for block in model_blocks(model, request.gradient).values() for matrix in block]
    if request.mode == "estimated":
        second_moments = _estimate(request, model, matrices)
    else:
        second_moments = _from_optimizer(request, model, matrices)
    write_tensors(draft.path / SECOND_MOMENT, to_tensors(second_moments))
    draft.facts |= {"mode": request.mode, "num_matrices": len(matrices)}


def _from_optimizer(
    request: SecondMomentRequest, model: nn.Module, matrices: Sequence[WeightMatrix]
) -> Mapping[str, Correction]:
    found = read_second_moments(request.checkpoint.path, model, matrices)
    if found is None:
        raise InputError(
            f"{request.checkpoint.path} has no optimizer state (optimizer.pt or second_moment.safetensors), which "
            f"second moment {request.mode!r} needs; put it beside the model, or use --second-moment estimated"
        )
    if request.mode == "factored":
        return {name: FactoredV(factor(V) if isinstance(V, FullSecondMoment) else V) for name, V in found.items()}
    for name, V in found.items():
        if isinstance(V, FactoredSecondMoment):
            raise InputError(
                f"{request.checkpoint.path} keeps only row and column factors of {name}, as Adafactor does, and no "
                "full second moment; use --second-moment factored"
            )
    return {name: FullV(V) for name, V in found.items()}


def _estimate(
    request: SecondMomentRequest, model: nn.Module, matrices: Sequence[WeightMatrix]
) -> Mapping[str, Correction]:
    """E[G²] by row and column over a seeded random sample of documents, one loss gradient each."""
    tokenizer = load_tokenizer(request.checkpoint, request.model)
    sequences = [ids for ids in tokenize_documents(tokenizer, _sample_texts(request)) if len(ids) > 1]
    if not sequences:
        raise InputError("no document of the sample has two tokens or more, so no second moment can be estimated")
    # A window counts as an example: splitting documents bounds memory, and a scale common to all V cancels.
    cut = windows([len(ids) for ids in sequences], context=context_tokens(model, request.model))
    where = device(request.model)
    taps = estimation_taps(matrices, device=where)
    with (
        TappedModel(model, taps) as tapped,
        progress(request.label, total=len(cut), unit="windows") as advance,
    ):
        for batch in batches(cut, token_budget=request.model.token_budget):
            tokens, chosen = pad(batch, sequences, [1] * len(sequences))
            tapped.backward(torch.from_numpy(tokens).to(where), torch.from_numpy(chosen).to(where))
            advance(len(batch))
    return {tap.name: _estimated(tap, num_windows=len(cut)) for tap in taps}


def _estimated(tap: EstimationTap, *, num_windows: int) -> FactoredV:
    try:
        return FactoredV(tap.result(num_examples=num_windows))
    except ValueError as error:  # an expert that no token of the sample was sent to, for one
        raise InputError(
            f"{tap.name}, estimated from {num_windows} windows: {error}; or raise the sample size"
        ) from error


def _sample_texts(request: SecondMomentRequest) -> list[str]:
    """The texts of a uniform sample of the corpus's rows, read shard by shard."""
    sizes = np.array([shard.num_rows for shard in request.sample])
    num_rows = int(sizes.sum())
    rng = np.random.default_rng(request.seed)
    chosen = np.sort(rng.choice(num_rows, size=min(request.sample_size, num_rows), replace=False))
    ends = np.cumsum(sizes)
    texts: list[str] = []
    for shard, end, size in zip(request.sample, ends, sizes, strict=True):
        rows = {int(row - (end - size)) + shard.first_row for row in chosen[(chosen >= end - size) & (chosen < end)]}
        if rows:
            for batch in read_documents(shard, batch_size=1024, text_column=request.text_column):
                texts += [text for row, text in batch.documents.select("row", "text").iter_rows() if row in rows]
    return texts
