"""The Kronecker factors that K-FAC corrects gradients by, EK-FAC's variances in their eigenbases, and axes of these."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from trackstar.storage.corpus import CorpusShard
from trackstar.storage.errors import InputError
from trackstar.storage.layout import AXES, KRONECKER, VARIANCES, tensors_file
from trackstar.storage.manifest import Artifact, Draft, read_manifest
from trackstar.storage.matrices import read_tensors, write_tensors
from trackstar.storage.reading import Reading
from trackstar.tasks.index.estimation import SamplePass, SampleRequest
from trackstar.tasks.index.settings import FactorConfig
from trackstar.tasks.models.checkpoint import device, load_model
from trackstar.tasks.models.engine import model_blocks
from trackstar.tasks.models.settings import EngineSpec, GradientConfig
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.corrections import from_tensors, to_tensors
from trackstar.tasks.numerics.corrections.axes import choose_axes
from trackstar.tasks.numerics.corrections.correction import Correction
from trackstar.tasks.numerics.corrections.diagonal_kfac import DiagonalKroneckerTap, diagonally_decomposed
from trackstar.tasks.numerics.corrections.ekfac import VarianceTap
from trackstar.tasks.numerics.corrections.kfac import KroneckerTap, decomposed, shared
from trackstar.tasks.numerics.unembedding import UNEMBEDDING
from trackstar.tasks.runtime.stage import Stage, stage

FactorLabels = Literal["sampled", "empirical"]
SETTLED = 0.2  # two halves of the sample differ by no more, so that the whole is off by about half of that


class KroneckerRequest(SampleRequest):
    """A and S of every matrix of one checkpoint."""

    kind: ClassVar[str] = "kronecker"
    version: ClassVar[int] = 1

    gradient: GradientConfig
    labels: FactorLabels

    @property
    def label(self) -> str:
        return f"Kronecker factors of {self.checkpoint.name} ({self.labels} labels)"

    def inputs(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint.digest,
            "parameters": self.gradient.parameters,
            "labels": self.labels,
            **self.sample_inputs(),
        }


class VariancesRequest(KroneckerRequest):
    """Λ of every matrix, in the eigenbases of its factors and over the same sample."""

    kind: ClassVar[str] = "variances"
    version: ClassVar[int] = 1

    kronecker: Artifact

    @property
    def label(self) -> str:
        return f"variances in the eigenbases of {self.checkpoint.name} ({self.labels} labels)"

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "kronecker": self.kronecker.digest}


class AxesRequest(KroneckerRequest):
    """The axes of the eigenbases in which corrected gradients vary most, over the same sample under its own labels."""

    kind: ClassVar[str] = "axes"
    version: ClassVar[int] = 1

    factors: tuple[Artifact, ...]

    @property
    def label(self) -> str:
        return f"axes of largest variance of {self.checkpoint.name}"

    def inputs(self) -> dict[str, Any]:
        settings = ("factor_damping", "num_axes", "num_layer_blocks")
        return {
            **super().inputs(),
            "factors": [artifact.digest for artifact in self.factors],
            **{name: getattr(self.gradient, name) for name in settings},
        }


def kronecker_factors(
    config: FactorConfig,
    engine: EngineSpec,
    *,
    shards: Sequence[CorpusShard],
    reading: Reading,
    existing: EngineSpec | None,
) -> tuple[Artifact, ...]:
    """What the engine's correction is estimated as: nothing but for K-FAC and EK-FAC.

    It is estimated once in the life of an index: a corpus that grows must not change the gradients it has.
    """
    if not engine.gradient.has_kronecker_factors:
        return ()
    if existing is not None and existing.checkpoint.digest == engine.checkpoint.digest and _are_there(existing):
        return existing.kronecker
    return estimate_factors(kronecker_request(config, engine, shards=shards, reading=reading), run=_run_stage)


def kronecker_request(
    config: FactorConfig, engine: EngineSpec, *, shards: Sequence[CorpusShard], reading: Reading
) -> KroneckerRequest:
    """What is to be estimated for an engine."""
    return KroneckerRequest(
        index=engine.index,
        checkpoint=engine.checkpoint,
        model=engine.model,
        gradient=engine.gradient,
        sample=tuple(shards),
        reading=reading,
        **config.model_dump(),
    )


def estimate_factors(request: KroneckerRequest, *, run: Callable[[Stage, Any], Artifact]) -> tuple[Artifact, ...]:
    """The factors, for EK-FAC the variances too, and the axes where some are kept, by whatever runs a stage."""
    artifacts = (run(write_kronecker, request),)
    if request.gradient.correction == "ekfac":
        variances = VariancesRequest(kronecker=artifacts[0], **request.model_dump())
        artifacts = (*artifacts, run(write_variances, variances))
    if request.gradient.projection == "axes":
        artifacts = (*artifacts, run(write_axes, AxesRequest(factors=artifacts, **request.model_dump())))
    return artifacts


def _run_stage(stage: Stage, request: KroneckerRequest) -> Artifact:
    return stage(request)


@stage
def write_kronecker(request: KroneckerRequest, draft: Draft) -> None:
    """Write the eigenvectors and eigenvalues of every matrix's A and S, and say how far the sample settles them."""
    model = load_model(request.checkpoint, request.model)
    matrices = [matrix for block in model_blocks(model, request.gradient).values() for matrix in block]
    sample = SamplePass(request, model)
    kinds = {UNEMBEDDING: DiagonalKroneckerTap}
    taps = [kinds.get(matrix.kind, KroneckerTap)(matrix, device=device(request.model)) for matrix in matrices]

    def before_batch(chosen: Tensor) -> None:
        for tap in taps:
            tap.begin(chosen.roll(-1, dims=1))  # no row's first token is chosen: it would be predicted from nothing

    def after_part() -> None:
        for tap in taps:
            tap.half()

    is_sampled = request.labels == "sampled"
    first, rest = sample.halves()
    sample.run(taps, first, with_sampled_labels=is_sampled, before_batch=before_batch, after_part=after_part)
    sample.run(taps, rest, with_sampled_labels=is_sampled, before_batch=before_batch)
    corrections, without_tokens = _decomposed(matrices, taps)
    write_tensors(draft.path / KRONECKER, to_tensors(corrections))
    draft.facts |= {
        "labels": request.labels,
        "sample_size": request.sample_size,
        "seed": request.seed,
        "num_documents": sample.num_documents,
        "num_tokens": sample.num_predictions,
        "num_matrices": len(matrices),
        "without_tokens": without_tokens,
        **_settling(taps),
    }


@stage
def write_variances(request: VariancesRequest, draft: Draft) -> None:
    """Write Λ of every matrix."""
    model = load_model(request.checkpoint, request.model)
    sample = SamplePass(request, model)
    factors = from_tensors(read_tensors(request.kronecker.path(request.index), KRONECKER))
    taps = [
        VarianceTap(matrix, factors[matrix.name], device=device(request.model))
        for block in model_blocks(model, request.gradient).values()
        for matrix in block
    ]
    sample.run(taps, with_sampled_labels=request.labels == "sampled")
    tensors = {}
    for tap in taps:
        try:
            tensors[f"{tap.name}.variances"] = tap.result(num_examples=len(sample.windows))
        except ValueError as error:
            raise InputError(f"{tap.name}, from {len(sample.windows)} windows: {error}") from error
    write_tensors(draft.path / VARIANCES, tensors)
    draft.facts |= {"labels": request.labels, "num_windows": len(sample.windows), "num_matrices": len(taps)}


@stage
def write_axes(request: AxesRequest, draft: Draft) -> None:
    """Write which axes of every matrix are kept, and what they are multiplied by."""
    model = load_model(request.checkpoint, request.model)
    blocks = model_blocks(model, request.gradient)
    tensors: dict[str, Tensor] = {}
    for artifact in request.factors:
        tensors |= read_tensors(artifact.path(request.index), tensors_file(artifact.name))
    corrections = from_tensors(tensors)
    taps = [
        VarianceTap(matrix, corrections[matrix.name].kronecker, device=device(request.model))
        for matrices in blocks.values()
        for matrix in matrices
    ]
    sample = SamplePass(request, model)
    sample.run(taps)
    damping, scales, variances = request.gradient.factor_damping, [], []
    for tap in taps:
        scales.append(corrections[tap.name].axis_scales(damping=damping))
        variances.append((tap.means(num_examples=len(sample.windows)) * scales[-1].square()).numpy())
    if not all(np.isfinite(of).all() for of in variances):
        raise InputError("the variance of some axis is not finite; take another sample with --seed")
    owners = [block for block, matrices in blocks.items() for _ in matrices]
    try:
        chosen = choose_axes(variances, blocks=owners, num_axes=request.gradient.num_axes)
    except ValueError as error:
        raise InputError(str(error)) from error
    kept: dict[str, Tensor] = {}
    for tap, own, of_matrix in zip(taps, chosen, scales, strict=True):
        kept[f"{tap.name}.indices"] = torch.from_numpy(own)
        kept[f"{tap.name}.scales"] = of_matrix.flatten()[own].float()
    write_tensors(draft.path / AXES, kept)
    held = sum(float(of.ravel()[own].sum()) for of, own in zip(variances, chosen, strict=True))
    draft.facts |= {
        "num_windows": len(sample.windows),
        "num_axes": sum(map(len, chosen)),
        "num_possible": sum(of.size for of in variances),
        "share_of_variance": held / sum(float(of.sum()) for of in variances),
    }


def _decomposed(
    matrices: Sequence[WeightMatrix], taps: Sequence[KroneckerTap | DiagonalKroneckerTap]
) -> tuple[dict[str, Correction], list[str]]:
    """The factors of every matrix, and the names of the experts that took the mean of their siblings'.

    Raises:
        InputError: A factor is zero or not finite, or no expert of a parameter saw a token.
    """
    found = {matrix.name: tap.factors() for matrix, tap in zip(matrices, taps, strict=True)}
    corrections, without_tokens = {}, []
    for matrix in matrices:
        factors = found[matrix.name]
        if factors is None:
            siblings = [found[other.name] for other in matrices if other.parameter == matrix.parameter]
            if not any(siblings):
                raise InputError(f"no token of the sample reached {matrix.parameter}; raise --factor-sample")
            factors = shared([pair for pair in siblings if pair is not None])
            without_tokens.append(matrix.name)
        try:
            decompose = diagonally_decomposed if matrix.kind == UNEMBEDDING else decomposed
            corrections[matrix.name] = decompose(*factors)
        except ValueError as error:
            raise InputError(f"{matrix.name}: {error}") from error
    return corrections, without_tokens


def _settling(taps: Sequence[KroneckerTap | DiagonalKroneckerTap]) -> dict[str, Any]:
    """How much A and S of two halves of the sample differ, in the median matrix and in the worst one."""
    differences = [tap.differences() for tap in taps]
    known = np.array([pair for pair in differences if pair is not None])
    if not len(known):
        return {"halves_differ": None, "is_settled": False}
    median, largest = np.median(known, axis=0).tolist(), known.max(axis=0).tolist()
    halves = {name: {"median": median[at], "largest": largest[at]} for at, name in enumerate(("A", "S"))}
    return {"halves_differ": halves, "is_settled": len(known) == len(taps) and max(median) <= SETTLED}


def _are_there(existing: EngineSpec) -> bool:
    """Whether what an index was estimated by has not been deleted since."""
    manifests = [read_manifest(artifact.path(existing.index)) for artifact in existing.kronecker]
    return bool(manifests) and all(
        manifest is not None and manifest.digest == artifact.digest
        for manifest, artifact in zip(manifests, existing.kronecker, strict=True)
    )
