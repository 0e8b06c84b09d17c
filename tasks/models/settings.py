"""Settings of a model, of its gradients and of the second moment that corrects them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trackstar.storage.manifest import Artifact
from trackstar.tasks.models.checkpoint_files import Checkpoint
from trackstar.tasks.models.optimizer_files import find_state
from trackstar.tasks.runtime.settings import Option, Settings


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
    """Which gradients are taken and how they are projected."""

    model_config = ConfigDict(title="Gradients")

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
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, description="Seed of all that is drawn at random.")


class EngineSpec(BaseModel):
    """All that determines a gradient: the checkpoint, how it is run, V, and the projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    checkpoint: Checkpoint
    model: ModelConfig
    gradient: GradientConfig
    second_moment: Artifact | None

    def inputs(self) -> dict[str, Any]:
        """What of it determines bytes: neither the device nor the size of a batch."""
        return {
            "checkpoint": self.checkpoint.digest,
            "dtype": self.model.dtype,
            "context_tokens": self.model.context_tokens,
            "gradient": self.gradient.model_dump(),
            "second_moment": self.second_moment and self.second_moment.digest,
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
