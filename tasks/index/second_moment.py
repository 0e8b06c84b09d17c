"""The second moment V that corrects gradients: the optimizer's, or an estimate where a checkpoint kept none."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from trackstar.storage.corpus import CorpusShard
from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import write_tensors
from trackstar.tasks.index.estimation import SamplePass, SampleRequest
from trackstar.tasks.models.checkpoint import Checkpoint, device, load_model
from trackstar.tasks.models.engine import EngineSpec, GradientConfig, model_blocks
from trackstar.tasks.models.optimizer_state import read_second_moments
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections import to_tensors
from trackstar.tasks.numerics.corrections.correction import Correction
from trackstar.tasks.numerics.corrections.factored_v import EstimationTap, FactoredV, estimation_taps
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, factor
from trackstar.tasks.runtime.stage import stage

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


class SecondMomentRequest(SampleRequest):
    """V of one checkpoint."""

    kind: ClassVar[str] = "second_moment"
    version: ClassVar[int] = 2

    gradient: GradientConfig
    mode: Literal["factored", "full", "estimated"]

    @property
    def label(self) -> str:
        return f"second moment of {self.checkpoint.name} ({self.mode})"

    def inputs(self) -> dict[str, Any]:
        common = {"checkpoint": self.checkpoint.digest, "mode": self.mode}
        if self.mode != "estimated":
            return {**common, "optimizer": self.checkpoint.optimizer_digest}
        return {**common, **self.sample_inputs()}


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
    sample = SamplePass(request, model)
    taps = estimation_taps(matrices, device=device(request.model))
    sample.run(taps)
    return {tap.name: _estimated(tap, num_windows=len(sample.windows)) for tap in taps}


def _estimated(tap: EstimationTap, *, num_windows: int) -> FactoredV:
    try:
        return FactoredV(tap.result(num_examples=num_windows))
    except ValueError as error:  # an expert that no token of the sample was sent to, for one
        raise InputError(
            f"{tap.name}, estimated from {num_windows} windows: {error}; or raise the sample size"
        ) from error
