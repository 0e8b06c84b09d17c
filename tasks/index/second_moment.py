"""The second moment V that corrects gradients: the optimizer's, or an estimate where a checkpoint kept none."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from trackstar.storage.corpus import CorpusShard
from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT, artifact_path
from trackstar.storage.manifest import Artifact, Draft, read_manifest
from trackstar.storage.matrices import write_tensors
from trackstar.storage.reading import Reading
from trackstar.tasks.index.estimation import SamplePass, SampleRequest
from trackstar.tasks.models.checkpoint import device, load_model
from trackstar.tasks.models.engine import decoder_matrices, model_blocks
from trackstar.tasks.models.optimizer_state import read_second_moments
from trackstar.tasks.models.settings import EngineSpec, GradientConfig, SecondMomentConfig
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections import to_tensors
from trackstar.tasks.numerics.corrections.correction import Correction
from trackstar.tasks.numerics.corrections.factored_v import EstimationTap, FactoredV, estimation_taps
from trackstar.tasks.numerics.corrections.full_v import FullV
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, factor
from trackstar.tasks.numerics.unembedding import UNEMBEDDING
from trackstar.tasks.runtime.stage import stage


class SecondMomentRequest(SampleRequest):
    """V of one checkpoint."""

    kind: ClassVar[str] = "second_moment"
    version: ClassVar[int] = 3

    gradient: GradientConfig
    mode: Literal["factored", "full", "estimated"]

    @property
    def label(self) -> str:
        return f"second moment of {self.checkpoint.name} ({self.mode})"

    def inputs(self) -> dict[str, Any]:
        is_default = self.gradient.parameters == GradientConfig.model_fields["parameters"].default
        parameters = {} if is_default else {"parameters": self.gradient.parameters}
        common = {"checkpoint": self.checkpoint.digest, "mode": self.mode, **parameters}
        if self.mode != "estimated":
            return {**common, "optimizer": self.checkpoint.optimizer_digest}
        return {**common, **self.sample_inputs()}


def second_moment(
    config: SecondMomentConfig,
    engine: EngineSpec,
    *,
    shards: Sequence[CorpusShard],
    reading: Reading,
    existing: EngineSpec | None,
) -> Artifact | None:
    """V for an engine that has none yet, or None where gradients are not to be divided.

    An estimate is made once in the life of an index: a corpus that grows must not change the gradients it has. One that
    was lost is made again from the sample it was made from, as long as the corpus still begins with that sample.
    """
    mode = config.resolve(engine.checkpoint)
    takes_unembedding = engine.gradient.correction == "v" and UNEMBEDDING in engine.gradient.parameters
    if mode == "estimated" and takes_unembedding:
        raise InputError(
            "the second moment of the unembedding is read from an optimizer's state and not estimated; use "
            "--correction kfac or none, or a checkpoint with its optimizer"
        )
    if mode == "none":
        return None
    common = {"index": engine.index, "checkpoint": engine.checkpoint, "model": engine.model}
    request = SecondMomentRequest(gradient=engine.gradient, mode=mode, **common)
    if mode != "estimated":
        return write_second_moment(request)
    sample = {"sample": tuple(shards), "reading": reading, **config.model_dump(exclude={"mode"})}
    request = request.model_copy(update=sample)
    if existing is None or not _is_estimate(existing, engine):
        return write_second_moment(request)
    V = existing.second_moment
    manifest = read_manifest(artifact_path(engine.index, V.name))
    if manifest is not None and manifest.digest == V.digest:
        return V
    return write_second_moment(_of_sample(request, V.name) or request)


def _of_sample(request: SecondMomentRequest, name: str) -> SecondMomentRequest | None:
    """The request whose artifact has this name, if its sample is made of the first files of the corpus."""
    files = [shard.id_prefix for shard in request.sample]
    ends = [end for end in range(len(files), 0, -1) if end == len(files) or files[end] != files[end - 1]]
    requests = (request.model_copy(update={"sample": request.sample[:end]}) for end in ends)
    return next((found for found in requests if f"{found.kind}/{found.directory.name}" == name), None)


def _is_estimate(existing: EngineSpec, engine: EngineSpec) -> bool:
    has_estimate = existing.second_moment is not None and existing.second_moment.facts["mode"] == "estimated"
    return has_estimate and existing.checkpoint.digest == engine.checkpoint.digest


@stage
def write_second_moment(request: SecondMomentRequest, draft: Draft) -> None:
    """Read V from the checkpoint's optimizer state, or estimate it."""
    model = load_model(request.checkpoint, request.model)
    matrices = [matrix for block in model_blocks(model, request.gradient).values() for matrix in block]
    if request.mode == "estimated":
        matrices = decoder_matrices(model, request.gradient)  # of the unembedding, nobody asks for an estimate
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
