"""Settings of how gradients become scores, and of whose tokens are read."""

from typing import Annotated, Any, Literal

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
    shrink: float | None = Field(
        None,
        ge=0,
        description="Take the median off every score, then this many median absolute deviations, down to 0: "
        "for scores that are read as effects. Ranks stay.",
    )

    rerank: int | None = Field(
        None,
        ge=1,
        description="Score this many proponents and opponents again with whole gradients, and give the best of those.",
    )

    @property
    def first_pass(self) -> "ScoreConfig":
        """How the store is ranked: deep enough for what is made of the ranking."""
        return self if self.rerank is None else self.model_copy(update={"top_k": self.rerank})

    def of_pass(self) -> dict[str, Any]:
        """What of it determines a ranking, and not what is made of one."""
        return self.model_dump(exclude={"shrink", "rerank"})

    def require_plain(self) -> None:
        """Raise InputError for what is made of a ranking, where several methods' rankings are compared as they are."""
        if self.shrink is not None:
            raise InputError(
                f"--shrink is {self.shrink:g}, which leaves every rank and so every metric of a comparison as it is; "
                "leave it out, or use it with `trackstar attribute`"
            )
        if self.rerank is not None:
            raise InputError(
                f"--rerank is {self.rerank}, and a comparison takes every method's own ranking; leave it out, or use "
                "it with `trackstar attribute`"
            )

    def check(self) -> None:
        """Raise InputError for a λ outside [0, 1), which a form or a command line may well bring."""
        self._check_rerank()
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

    def _check_rerank(self) -> None:
        if self.rerank is None:
            return
        if not 0 < self.top_k <= self.rerank:
            raise InputError(
                f"--rerank is {self.rerank} and --top-k {self.top_k}: only candidates that are scored again are given; "
                f"use --top-k of 1 to {self.rerank}, or a larger --rerank"
            )
        if self.shrink is not None:
            raise InputError(
                f"--rerank is {self.rerank} and --shrink {self.shrink:g}, which needs scores of every document and not "
                "of the first alone; leave one of them out"
            )


class TokenInfluenceConfig(Settings):
    """Whose tokens are read."""

    model_config = ConfigDict(title="Token influence")
    option_prefix = "token-influence"

    num_proponents: Annotated[int, Option("--token-influence")] = Field(
        5, ge=0, description="Proponents of each query that are read; 0: none, skip it."
    )
