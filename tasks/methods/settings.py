"""The names of the methods, and the settings that single ones of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trackstar.storage.errors import InputError
from trackstar.tasks.runtime.settings import Settings
from trackstar.tasks.scoring.settings import ScoreConfig

FINEST_IN_FLOAT32 = 1e-3  # relative residual; see the test that compares the two precisions


@dataclass(frozen=True)
class Preset:
    """A gradient method: what it changes in the score settings, and whether gradients are divided by √V."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    is_corrected: bool = True


TRACKSTAR, BM25, RANDOM = "trackstar", "bm25", "random"
GRADIENT_METHODS: dict[str, Preset] = {
    TRACKSTAR: Preset(),
    "mixed": Preset({"whitening": "mixed"}),
    "train_only": Preset({"whitening": "train"}),
    "no_whitening": Preset({"whitening": "none"}),
    "no_unit_norm": Preset({"unit_norm": False}),
    "no_v": Preset(is_corrected=False),
    "trak": Preset({"whitening": "train", "unit_norm": False}, is_corrected=False),
}
TRACIN_METHODS = {"grad_dot": False, "grad_cosine": True}  # whether products are of unit vectors
INFLUENCE, DENSE, HYBRID = "influence", "dense", "hybrid"
FUSED_METHODS = (TRACKSTAR, BM25)
METHODS = (*GRADIENT_METHODS, *TRACIN_METHODS, INFLUENCE, BM25, DENSE, HYBRID, RANDOM)
DEFAULT_METHODS = (TRACKSTAR, BM25)


class InfluenceConfig(Settings):
    """The linear system of influence functions."""

    model_config = ConfigDict(title="Influence functions")
    option_prefix = "influence"

    damping: float = Field(0.1, gt=0, description="Added to the Hessian, relative to its mean eigenvalue.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="Relative residual that conjugate gradients go down to.")
    max_iterations: int = Field(1000, ge=1, description="More than this, and the damping is refused as too small.")
    dtype: Literal["float32", "float64"] = Field(
        "float64",
        description="Of the products; float32 takes half the time, and holds a residual of 1e-3 at the least.",
    )

    @model_validator(mode="after")
    def _is_within_reach(self) -> "InfluenceConfig":
        if self.dtype == "float32" and self.tolerance < FINEST_IN_FLOAT32:
            raise ValueError(
                f"tolerance {self.tolerance:g} is finer than float32 holds over many iterations; take at least "
                f"{FINEST_IN_FLOAT32:g}, or float64"
            )
        return self


class MethodSettings(BaseModel):
    """What methods need besides an index and queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: ScoreConfig
    influence: InfluenceConfig = InfluenceConfig()
    also_checkpoints: tuple[str, ...] = ()
    dense_encoder: str | None = None
    dask: str = "local"


def require_possible(methods: Sequence[str], *, dense_encoder: str | None, also_checkpoints: Sequence[str]) -> None:
    """Raise InputError for a method there is none of, that is named twice, that lacks what it needs, and for what
    no method would use."""
    for position, method in enumerate(methods):
        if method not in METHODS:
            nearest = get_close_matches(method, METHODS, n=1)
            meant = f"; did you mean {nearest[0]}?" if nearest else ""
            raise InputError(f"--methods has {method!r}, expected some of {', '.join(METHODS)}{meant}")
        if method in methods[:position]:
            raise InputError(f"method {method!r} is named twice; name each once")
    if (DENSE in methods) != (dense_encoder is not None):
        raise InputError(
            f"the dense encoder is {dense_encoder} and the methods are {', '.join(methods)}; give both the method "
            "dense and --dense-encoder DIR, a local sentence encoder, or neither"
        )
    if also_checkpoints and not set(TRACIN_METHODS) & set(methods):
        raise InputError(
            f"{len(also_checkpoints)} further checkpoints were given and none of {', '.join(TRACIN_METHODS)}, which "
            "alone sum over checkpoints; add one of them, or leave out --also-checkpoints"
        )
