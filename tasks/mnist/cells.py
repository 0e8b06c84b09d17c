"""The cells of the study: one model each, measured. Each is one cached task, keyed by its images, set-up and seed.

terms       every way of scoring, with and without unit norm            variant × seed
sweeps      what one setting at a time does to the win rates            seed
geometry    R_train beside the exact projected Hessian                  seed
parameters  which parameters the numbers of a projection come from      seed
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from trackstar.storage.manifest import Artifact
from trackstar.tasks.mnist import mlp
from trackstar.tasks.mnist.data import read_images
from trackstar.tasks.mnist.encodings import (
    Scorer,
    corrected,
    directions,
    flattened,
    one_sided,
    one_sided_by_parameter,
    two_sided,
    two_sided_projections,
)
from trackstar.tasks.mnist.model import Fitted, StudyConfig, Variant, fit
from trackstar.tasks.mnist.subspaces import magnitude, principal_angles
from trackstar.tasks.mnist.sweeps import SWEPT_CANDIDATES, SWEPT_QUERIES, Point, sweep_all
from trackstar.tasks.mnist.win_rates import Wins, compare_wins
from trackstar.tasks.numerics.curvature import gram, spectrum
from trackstar.tasks.runtime.stage import StageRequest, cached_task


class Measured(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Terms(Measured):
    """Win rates of one model: way of scoring → "dot" or "cosine" → wins."""

    variant: Variant
    seed: int
    accuracies: list[tuple[int, float]]
    wins: dict[str, dict[str, Wins]]


class Sweeps(Measured):
    seed: int
    points: list[Point]


class Geometry(Measured):
    """R_train and the projected Hessian of one model, each divided by its mean eigenvalue's magnitude.

    Attributes:
        angles: Principal angles in degrees between their leading subspaces, by the number of directions.
        hessian_wins: Scores under |H| in the place of R.
        matrices: Both, for one model alone.
    """

    seed: int
    train_spectrum: list[float]
    hessian_spectrum: list[float]
    angles: dict[int, list[float]]
    hessian_wins: Wins
    matrices: dict[str, list[list[float]]] | None


class ParameterShares(Measured):
    """What each parameter contributes to the two-sided vectors, and what is left of two-sidedness without it.

    Attributes:
        length_shares: Share of the squared length that comes from each parameter.
        dim_shares: Share of the numbers that come from it.
        alone: Wins of each parameter's own numbers under mixed R.
        control: Wins, by "no R", "train R" and "mixed R", of one-sided projections that give every parameter as many
            numbers as the two-sided one does.
    """

    seed: int
    length_shares: dict[str, float]
    dim_shares: dict[str, float]
    alone: dict[str, Wins]
    control: dict[str, Wins]


class CellRequest(StageRequest):
    """One model of the study; ``index`` is the directory of the study."""

    images: Artifact
    config: StudyConfig
    variant: Variant
    seed: int

    @property
    def label(self) -> str:
        return f"{self.kind} {self.variant} seed {self.seed}"

    def inputs(self) -> dict[str, Any]:
        set_up = self.config.model_dump(exclude={"num_seeds"})
        return {"images": self.images.digest, "config": set_up, "variant": self.variant, "seed": self.seed}

    def fitted(self, **changes: int) -> Fitted:
        torch.set_num_threads(1)  # cells run side by side; this is per thread
        images = read_images(self.images, self.index)
        return fit(*images, variant=self.variant, seed=self.seed, config=self.config.model_copy(update=changes))


class TermsRequest(CellRequest):
    kind: ClassVar[str] = "terms"
    version: ClassVar[int] = 1


class SweepsRequest(CellRequest):
    kind: ClassVar[str] = "sweeps"
    version: ClassVar[int] = 1


class GeometryRequest(CellRequest):
    kind: ClassVar[str] = "geometry"
    version: ClassVar[int] = 1

    keep_matrices: bool

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "keep_matrices": self.keep_matrices}


class ParametersRequest(CellRequest):
    kind: ClassVar[str] = "parameters"
    version: ClassVar[int] = 1


@cached_task
def measure_terms(request: TermsRequest) -> Terms:
    """Switch the terms on one after another."""
    fitted = request.fitted()
    wins = {}
    for name, (vectors, R, mixing_weight) in ways_of_scoring(fitted, request.config, seed=request.seed).items():
        scorer = Scorer(vectors[0], vectors[1:], R=R, damping=request.config.damping)
        wins[name] = {
            norm: compare_wins(scorer.scores(mixing_weight=mixing_weight, unit_norm=norm == "cosine"), fitted)
            for norm in ("dot", "cosine")
        }
    return Terms(variant=request.variant, seed=request.seed, accuracies=fitted.accuracies, wins=wins)


@cached_task
def measure_sweeps(request: SweepsRequest) -> Sweeps:
    """Change one setting at a time."""
    most_candidates = max(*SWEPT_CANDIDATES, request.config.num_candidates)
    most_queries = max(*SWEPT_QUERIES, request.config.num_queries)
    fitted = request.fitted(num_candidates=most_candidates, num_queries=most_queries)
    return Sweeps(seed=request.seed, points=sweep_all(fitted, request.config, seed=request.seed))


@cached_task
def measure_geometry(request: GeometryRequest) -> Geometry:
    """R_train beside the Hessian of the same images' mean loss, both seen through the same projection and √V."""
    fitted, config = request.fitted(), request.config
    gradients = [corrected(g, fitted.second_moment, epsilon=config.epsilon) for g in fitted.gradients()]
    P = two_sided_projections(gradients[0], projection_dim=config.projection_dim, seed=request.seed)
    queries, candidates, wrong = (two_sided(g, P) for g in gradients)
    R = gram(candidates) / len(candidates)
    rows = directions(P, fitted.second_moment, epsilon=config.epsilon)
    H = mlp.projected_hessian(fitted.parameters, fitted.candidates, fitted.labels, directions=rows).numpy()
    scorer = Scorer(queries, (candidates, wrong), R=magnitude(H), damping=config.damping)
    R, H = R / (np.trace(R) / len(R)), H / (np.trace(magnitude(H)) / len(H))
    return Geometry(
        seed=request.seed,
        train_spectrum=spectrum(R).tolist(),
        hessian_spectrum=np.linalg.eigvalsh(H)[::-1].tolist(),
        angles={size: principal_angles(R, H, num_directions=size).tolist() for size in (5, 10, 20) if size <= len(R)},
        hessian_wins=compare_wins(scorer.scores(), fitted),
        matrices={"R": R.round(4).tolist(), "H": H.round(4).tolist()} if request.keep_matrices else None,
    )


@cached_task
def measure_parameters(request: ParametersRequest) -> ParameterShares:
    """Take the two-sided vectors apart by parameter, and give a one-sided projection the same shares."""
    fitted, config = request.fitted(), request.config
    gradients = [corrected(g, fitted.second_moment, epsilon=config.epsilon) for g in fitted.gradients()]
    P = two_sided_projections(gradients[0], projection_dim=config.projection_dim, seed=request.seed)
    parts = {name: [two_sided(g, {name: projection}) for g in gradients] for name, projection in P.items()}
    squares = {name: float(np.sum(vectors[1].astype(np.float64) ** 2)) for name, vectors in parts.items()}
    control = one_sided_by_parameter(gradients, P, seed=request.seed)
    return ParameterShares(
        seed=request.seed,
        length_shares={name: square / sum(squares.values()) for name, square in squares.items()},
        dim_shares={name: projection.num_dims / config.num_dims for name, projection in P.items()},
        alone={name: whitened_wins(vectors, fitted, config)["mixed R"] for name, vectors in parts.items()},
        control=whitened_wins(control, fitted, config),
    )


def whitened_wins(vectors: Sequence[np.ndarray], fitted: Fitted, config: StudyConfig) -> dict[str, Wins]:
    """Wins of unit-norm scores without R, under R_train, and under R mixed."""
    R = gram(vectors[1]) / len(vectors[1])
    bare, whitened = (Scorer(vectors[0], vectors[1:], R=M, damping=config.damping) for M in (None, R))
    return {
        "no R": compare_wins(bare.scores(), fitted),
        "train R": compare_wins(whitened.scores(), fitted),
        "mixed R": compare_wins(whitened.scores(mixing_weight=config.mixing_weight), fitted),
    }


def ways_of_scoring(fitted: Fitted, config: StudyConfig, *, seed: int) -> dict[str, tuple]:
    """Each way's vectors (queries, candidates, candidates with the wrong label), its R or None, and its λ."""
    raw = fitted.gradients()
    divided = [corrected(g, fitted.second_moment, epsilon=config.epsilon) for g in raw]
    P = two_sided_projections(raw[0], projection_dim=config.projection_dim, seed=seed)
    flat = [flattened(g) for g in divided]
    projected = {
        "two_sided": [two_sided(g, P) for g in divided],
        "one_sided": one_sided(flat, num_dims=config.num_dims, seed=seed),
    }
    ways = {"gradient": ([flattened(g) for g in raw], None, 0.0), "corrected": (flat, None, 0.0)}
    for name, vectors in projected.items():
        R = gram(vectors[1]) / len(vectors[1])
        ways[name] = (vectors, None, 0.0)
        ways[f"{name}_train"] = (vectors, R, 0.0)
        ways[f"{name}_mixed"] = (vectors, R, config.mixing_weight)
    return ways
