"""Settings of how gradients become scores, and of whose tokens are read."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from trackstar.storage.errors import InputError
from trackstar.tasks.runtime.settings import Option, Settings

DAMPING = 0.1  # of R_train, where none is given

Whitening = Literal["mixed", "train", "none"]


class ScoreConfig(Settings):
    """How gradients become scores."""

    model_config = ConfigDict(title="Scores")

    whitening: Whitening = Field(
        "mixed", description="mixed: R = λ R_eval + (1-λ) R_train; train: R_train alone; none: no R."
    )
    mixing_weight: float | Literal["auto"] = Field(
        "auto", description="λ, at least 0 and less than 1; auto: where the spectra of R_eval and R_train cross."
    )
    mixing_weights: tuple[float, ...] = Field(
        (), description="Further λ, scored in the same pass; their results are those of the method NAME@λ."
    )
    damping: float | None = Field(
        None, ge=0, description=f"Added to R_train, relative to its mean eigenvalue; by default {DAMPING:g}."
    )
    unit_norm: bool = Field(True, description="Whether encodings have length 1, so that scores are cosines.")
    top_k: int = Field(10, ge=0, description="Proponents and opponents of each query; 0: every candidate.")

    def check(self) -> None:
        """Raise InputError for a λ outside [0, 1), which a form or a command line may well bring."""
        given = [] if self.mixing_weight == "auto" else [self.mixing_weight]
        for weight in [*given, *self.mixing_weights]:
            if not 0 <= weight < 1:
                raise InputError(f"the mixing weight is {weight:g}; it must be at least 0 and less than 1, or auto")
        if len({f"{weight:g}" for weight in self.mixing_weights}) < len(self.mixing_weights):
            raise InputError(f"the mixing weights {self.mixing_weights} name one twice; name each once")
        if self.mixing_weights and self.whitening != "mixed":
            raise InputError(
                f"mixing weights are given and whitening is {self.whitening}, which has none; use --whitening mixed"
            )


class TokenInfluenceConfig(Settings):
    """Whose tokens are read."""

    model_config = ConfigDict(title="Token influence")
    option_prefix = "token-influence"

    num_proponents: Annotated[int, Option("--token-influence")] = Field(
        5, ge=0, description="Proponents of each query that are read; 0: none, skip it."
    )
