"""Settings of a model, of its gradients and of the second moment that corrects them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trackstar.storage.errors import InputError
from trackstar.storage.manifest import Artifact
from trackstar.tasks.models.checkpoint_files import Checkpoint
from trackstar.tasks.models.optimizer_files import find_state
from trackstar.tasks.runtime.settings import Option, Settings

DEFAULT_FACTOR_DAMPING = 0.01
DEFAULT_NUM_AXES = 8192
ADDED_SETTINGS = ("parameters", "projection_rows")  # since the first indexes, which are those of the defaults


class ModelConfig(Settings):
    """How the model is run."""

    model_config = ConfigDict(title="Model")

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="Precision of the model; projected gradients are float32 in any case."
    )
    device: str = Field("auto", description="Torch device; auto takes a GPU where there is one.")
    context_tokens: int | None = Field(
        None, ge=2, description="Longest window in tokens; by default the context the model was trained with."
    )
    token_budget: int = Field(4096, ge=16, description="Tokens of a batch, padding included.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the checkpoint.")


class GradientConfig(Settings):
    """Which gradients are taken, what they are corrected by, and how they are projected."""

    model_config = ConfigDict(title="Gradients")

    correction: Literal["v", "kfac", "ekfac", "none"] = Field(
        "v",
        description="v: divided by √V; kfac: half-whitened on both sides by Kronecker factors of the Fisher matrix; "
        "ekfac: by variances in their eigenbases; none: left as they are.",
    )
    factor_damping: float = Field(
        DEFAULT_FACTOR_DAMPING,
        gt=0,
        description="Added to each Kronecker factor, relative to its mean eigenvalue; kfac and ekfac only.",
    )
    parameters: tuple[Literal["attention", "mlp", "unembedding"], ...] = Field(
        ("attention", "mlp"),
        min_length=1,
        description="Which weight matrices: attention and mlp of the decoder layers, and the unembedding, whose output "
        "use alone is taken where it is tied.",
    )
    projection: Literal["two_sided", "axes", "none"] = Field(
        "two_sided",
        description="two_sided: random L G Rᵀ per matrix; axes: the axes of the eigenbases of kfac or ekfac in which "
        "gradients vary most; none: whole gradients, for small models.",
    )
    projection_dim: int = Field(64, ge=1, description="k: a block has k² dimensions.")
    num_axes: int = Field(
        DEFAULT_NUM_AXES, ge=1, description="How many axes are kept, of all matrices together; at least one a block."
    )
    projection_rows: Literal["gaussian", "orthonormal"] = Field(
        "gaussian", description="gaussian: independent entries; orthonormal: better where k approaches the matrix."
    )
    num_layer_blocks: int = Field(
        8, ge=1, description="Contiguous groups of layers; each has one block for attention and one for MLP."
    )
    pooling: Literal["sum", "concatenate"] = Field(
        "sum", description="Whether a block's matrices share its k² dimensions or have k² each."
    )
    epsilon: float = Field(1e-8, gt=0, lt=1, description="Floor of √V, relative to the root of V's mean.")
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, description="Seed of all that is drawn at random.")

    @property
    def has_kronecker_factors(self) -> bool:
        return self.correction in ("kfac", "ekfac")

    def check(self) -> None:
        """Raise InputError for settings that take no part beside others, and are not at their defaults."""
        if self.projection == "axes":
            self._check_axes()
        elif self.num_axes != DEFAULT_NUM_AXES:
            raise InputError(
                f"{self.num_axes} axes are to be kept and the projection is {self.projection}, which has no axes; "
                "leave out --num-axes, or use --projection axes"
            )
        if self.projection != "two_sided" and self.projection_rows != "gaussian":
            raise InputError(
                f"projection rows are {self.projection_rows} and the projection is {self.projection}, which has no "
                "rows; leave out --projection-rows, or use --projection two_sided"
            )
        if "unembedding" in self.parameters:
            self._check_unembedding()
        if not self.has_kronecker_factors and self.factor_damping != DEFAULT_FACTOR_DAMPING:
            raise InputError(
                f"the factor damping is {self.factor_damping:g} and the correction is {self.correction}, which has no "
                "Kronecker factors; leave out --factor-damping, or use --correction kfac"
            )

    def _check_unembedding(self) -> None:
        if self.correction == "ekfac" or self.projection != "two_sided":
            raise InputError(
                f"the unembedding is asked for beside the correction {self.correction} and the projection "
                f"{self.projection}, which would take its gradient whole, a row a token of the vocabulary; use "
                "--correction kfac, v or none with --projection two_sided"
            )

    def _check_axes(self) -> None:
        if not self.has_kronecker_factors:
            raise InputError(
                f"the projection is axes and the correction is {self.correction}, which has no eigenbasis; add "
                "--correction ekfac or kfac, or use --projection two_sided"
            )
        fields = type(self).model_fields
        for name, option in (("projection_dim", "--projection-dim"), ("pooling", "--pooling")):
            if getattr(self, name) != fields[name].default:
                raise InputError(
                    f"{option} is {getattr(self, name)} and the projection is axes, whose number --num-axes says and "
                    f"which no matrices share; leave out {option}"
                )

    @field_validator("parameters", mode="before")
    @classmethod
    def _refuse_embedding(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and "embedding" in value:
            raise ValueError(
                "gradients of the input embedding are not taken, having other rows for every document; leave embedding "
                "out, or take unembedding"
            )
        return value

    @field_validator("parameters")
    @classmethod
    def _in_one_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    def identity(self) -> dict[str, Any]:
        """What determines a gradient, without what takes no part: an index keeps its shards when a setting is added."""
        unused = {"correction", "factor_damping"} if not self.has_kronecker_factors else set()
        unused |= {"projection_dim", "projection_rows", "pooling"} if self.projection == "axes" else {"num_axes"}
        added = {name for name in ADDED_SETTINGS if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=unused | added)


class EngineSpec(BaseModel):
    """All that determines a gradient: the checkpoint, how it is run, its correction, and the projection.

    Attributes:
        second_moment: V, which corrects gradients or, beside another correction, the steps of tail-patch alone.
        kronecker: What K-FAC or EK-FAC was estimated as, one artifact after another: the factors, variances, axes.
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
        if self.gradient.projection == "axes":  # which has the scales of those that are kept
            return tuple(artifact for artifact in self.kronecker if not artifact.name.startswith("variances/"))
        if self.gradient.has_kronecker_factors:
            return self.kronecker
        return (self.second_moment,) if self.second_moment and self.gradient.correction == "v" else ()

    def uncorrected(self) -> "EngineSpec":
        """The same gradients as they are; axes being those of a correction, they are projected instead."""
        projection = "none" if self.gradient.projection == "none" else "two_sided"
        gradient = self.gradient.model_copy(update={"correction": "none", "projection": projection})
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


Mode = Literal["auto", "factored", "full", "estimated", "none"]


class SecondMomentConfig(Settings):
    """What gradients are divided by."""

    model_config = ConfigDict(title="Second moment")
    option_prefix = "second-moment"

    mode: Annotated[Mode, Option("--second-moment")] = Field(
        "auto",
        description="auto: the optimizer's, factored, if the checkpoint has it, else estimated; factored: V as row and "
        "column means; full: Adam's V, element by element; estimated: from a sample of the corpus; none: no division.",
    )
    sample_size: int = Field(256, ge=1, description="Documents an estimate is made from.")
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, description="Seed of that sample.")

    def resolve(self, checkpoint: Checkpoint) -> Mode:
        """The mode without ``auto``.

        Raises:
            InputError: Training left an optimizer state that is not read.
        """
        if self.mode == "auto":
            return "factored" if find_state(checkpoint.path) else "estimated"
        return self.mode
