"""One setting at a time: damping, λ, projection size, both samples, the floor of √V, directions that are kept."""

from collections.abc import Iterator, Sequence
from itertools import product

from numpy import ndarray
from pydantic import BaseModel, ConfigDict

from trackstar.tasks.mnist.encodings import Scorer, corrected, flattened, one_sided, two_sided, two_sided_projections
from trackstar.tasks.mnist.model import Fitted, StudyConfig
from trackstar.tasks.mnist.subspaces import leading_eigenvectors
from trackstar.tasks.mnist.win_rates import Wins, compare_wins
from trackstar.tasks.numerics.curvature import gram

DAMPINGS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MIXING_WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
PROJECTION_DIMS = (2, 4, 8, 16, 24)
SWEPT_QUERIES = (25, 50, 100, 200, 500, 1000)
SWEPT_CANDIDATES = (200, 350, 500, 1000, 2000)
DIRECTIONS = (3, 5, 10, 20, 40, 80)
EPSILONS = (1e-8, 1e-4, 1e-3, 1e-2, 1e-1, 0.5)

Vectors = Sequence[ndarray]  # of the queries, the candidates, the candidates with the wrong label


class Point(BaseModel):
    """What one value of one setting gives: ``sweep`` names the setting, ``curve`` the projection and the whitening."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: str
    curve: str
    x: float
    wins: Wins


def sweep_all(fitted: Fitted, config: StudyConfig, *, seed: int) -> list[Point]:
    """Every point of every sweep for one model; the sizes of the two samples are the set-up's where not swept."""
    sweep = _Sweep(fitted, config, seed)
    kinds = (sweep.damping, sweep.mixing, sweep.projection, sweep.samples, sweep.floor, sweep.directions)
    return [point for kind in kinds for point in kind()]


class _Sweep:
    def __init__(self, fitted: Fitted, config: StudyConfig, seed: int) -> None:
        self.fitted, self.config, self.seed = fitted, config, seed
        self.gradients = fitted.gradients()
        self.vectors = self.encode(epsilon=config.epsilon, projection_dim=config.projection_dim)
        self.sample = {name: self.cut(vectors) for name, vectors in self.vectors.items()}

    def encode(self, *, epsilon: float, projection_dim: int) -> dict[str, Vectors]:
        """Both projections of all gradients at hand."""
        divided = [corrected(g, self.fitted.second_moment, epsilon=epsilon) for g in self.gradients]
        P = two_sided_projections(divided[0], projection_dim=projection_dim, seed=self.seed)
        num_dims = 2 * projection_dim * (projection_dim + 1)
        return {
            "two-sided": [two_sided(g, P) for g in divided],
            "one-sided": one_sided([flattened(g) for g in divided], num_dims=num_dims, seed=self.seed),
        }

    def cut(self, vectors: Vectors, *, num_candidates: int = 0, num_queries: int = 0) -> Vectors:
        """The first so many of each kind."""
        n, q = num_candidates or self.config.num_candidates, num_queries or self.config.num_queries
        return [vectors[0][:q], vectors[1][:n], vectors[2][:n]]

    def wins(self, vectors: Vectors, *, whitening: str, damping: float | None = None, weights=None) -> list[Wins]:
        """Win rates under no R, R_train, or R mixed at each of the weights."""
        R = None if whitening == "no R" else gram(vectors[1]) / len(vectors[1])
        damping = self.config.damping if damping is None else damping
        scorer = Scorer(vectors[0], vectors[1:], R=R, damping=damping)
        chosen = weights or [self.config.mixing_weight if whitening == "mixed R" else 0.0]
        return [compare_wins(scorer.scores(mixing_weight=weight), self.fitted) for weight in chosen]

    def damping(self) -> Iterator[Point]:
        for (name, vectors), whitening, x in product(self.sample.items(), ("train R", "mixed R"), DAMPINGS):
            [wins] = self.wins(vectors, whitening=whitening, damping=x)
            yield Point(sweep="damping", curve=f"{name}, {whitening}", x=x, wins=wins)

    def mixing(self) -> Iterator[Point]:
        for name, vectors in self.sample.items():
            found = self.wins(vectors, whitening="mixed R", weights=MIXING_WEIGHTS)
            for x, wins in zip(MIXING_WEIGHTS, found, strict=True):
                yield Point(sweep="mixing", curve=f"{name}, mixed R", x=x, wins=wins)

    def projection(self) -> Iterator[Point]:
        for x in PROJECTION_DIMS:
            for name, vectors in self.encode(epsilon=self.config.epsilon, projection_dim=x).items():
                for whitening in ("no R", "mixed R"):
                    [wins] = self.wins(self.cut(vectors), whitening=whitening)
                    yield Point(sweep="projection", curve=f"{name}, {whitening}", x=x, wins=wins)

    def samples(self) -> Iterator[Point]:
        """As many points as the source has images for."""
        available_queries, available = len(self.fitted.queries), len(self.fitted.candidates)
        for name, vectors in self.vectors.items():
            for x in (x for x in SWEPT_QUERIES if x <= available_queries):
                [wins] = self.wins(self.cut(vectors, num_queries=x), whitening="mixed R")
                yield Point(sweep="queries", curve=f"{name}, mixed R", x=x, wins=wins)
            for x, whitening in product((x for x in SWEPT_CANDIDATES if x <= available), ("train R", "mixed R")):
                [wins] = self.wins(self.cut(vectors, num_candidates=x), whitening=whitening)
                yield Point(sweep="candidates", curve=f"{name}, {whitening}", x=x, wins=wins)

    def floor(self) -> Iterator[Point]:
        for x in EPSILONS:
            for name, vectors in self.encode(epsilon=x, projection_dim=self.config.projection_dim).items():
                for whitening in ("no R", "mixed R"):
                    [wins] = self.wins(self.cut(vectors), whitening=whitening)
                    yield Point(sweep="floor", curve=f"{name}, {whitening}", x=x, wins=wins)

    def directions(self) -> Iterator[Point]:
        """The vectors cut down to the leading eigenvectors of R_train, as they are and whitened among themselves."""
        for name, vectors in self.sample.items():
            R = gram(vectors[1]) / len(vectors[1])
            for x in (*(x for x in DIRECTIONS if x < len(R)), len(R)):
                U = leading_eigenvectors(R, num_directions=x)
                for whitening in ("no R", "train R"):
                    [wins] = self.wins([kind @ U for kind in vectors], whitening=whitening)
                    yield Point(sweep="directions", curve=f"{name}, {whitening}", x=x, wins=wins)
