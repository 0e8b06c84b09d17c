"""What the cells of the study amount to: every number with its interval over models."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.mnist.cells import Geometry, ParameterShares, Sweeps, Terms
from trackstar.tasks.mnist.claims import TESTS, JudgedClaim, Way, estimate, judge
from trackstar.tasks.mnist.model import VARIANTS, StudyConfig, Variant
from trackstar.tasks.mnist.pictures import Pictures
from trackstar.tasks.mnist.win_rates import Wins

BothTests = dict[str, Estimate]


class Study(BaseModel):
    """All cells, and the summaries the page is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    num_images: int
    config: StudyConfig
    pictures: list[Pictures]
    terms: list[Terms]
    geometry: list[Geometry]
    parameters: list[ParameterShares]
    sweeps: list[Sweeps]

    @property
    def source(self) -> str:
        """Name of the images, without the directories of whoever ran it."""
        return self.data.replace("\\", "/").rsplit("/", 1)[-1]

    def wins_by_way(self) -> dict[Way, list[Wins]]:
        """Win rates of every way of scoring, models in the order of their seeds."""
        cells = sorted(self.terms, key=lambda cell: cell.seed)
        return {
            Way(variant, encoding, norm): [cell.wins[encoding][norm] for cell in cells if cell.variant == variant]
            for variant in VARIANTS
            for encoding in cells[0].wins
            for norm in ("dot", "cosine")
        }

    def table(self) -> dict[Way, BothTests]:
        return {way: both_tests(wins) for way, wins in self.wins_by_way().items()}

    def claims(self) -> list[JudgedClaim]:
        return judge(self.wins_by_way())

    def hessian_wins(self) -> BothTests:
        return both_tests([cell.hessian_wins for cell in self.geometry])

    def control_wins(self) -> dict[str, BothTests]:
        """One-sided by parameter, by whitening."""
        return {
            name: both_tests([cell.control[name] for cell in self.parameters]) for name in self.parameters[0].control
        }

    def parameter_rows(self) -> list[tuple[str, Estimate, float, Estimate]]:
        """Of each parameter: name, share of the length, share of the numbers, same-class wins alone under mixed R."""
        return [
            (
                name,
                estimate([100 * cell.length_shares[name] for cell in self.parameters]),
                100 * dims,
                estimate([cell.alone[name].same_class for cell in self.parameters]),
            )
            for name, dims in self.parameters[0].dim_shares.items()
        ]

    def accuracy(self, variant: Variant) -> list[tuple[int, Estimate]]:
        """Accuracy in the course of training."""
        courses = [cell.accuracies for cell in self.terms if cell.variant == variant]
        return [(step, estimate([100 * course[i][1] for course in courses])) for i, (step, _) in enumerate(courses[0])]

    def curves(self, sweep: str) -> dict[str, list[tuple[float, BothTests]]]:
        """Curve name → (setting, win rates) of one sweep, over the models that reach that setting."""
        points = [point for cell in self.sweeps for point in cell.points if point.sweep == sweep]
        return {
            curve: [
                (x, both_tests([point.wins for point in points if (point.curve, point.x) == (curve, x)]))
                for x in sorted({point.x for point in points if point.curve == curve})
            ]
            for curve in dict.fromkeys(point.curve for point in points)
        }

    def numbers(self) -> dict[str, Any]:
        """The study as plain JSON."""
        return {
            "data": self.source,
            "num_images": self.num_images,
            "config": self.config.model_dump(),
            "wins": {" ".join(way): _plain(both) for way, both in self.table().items()},
            "hessian_wins": _plain(self.hessian_wins()),
            "one_sided_by_parameter_wins": {name: _plain(both) for name, both in self.control_wins().items()},
            "parameters": {
                name: {"length": length.model_dump(), "dims": dims, "same_class_alone": alone.model_dump()}
                for name, length, dims, alone in self.parameter_rows()
            },
            "claims": [
                {
                    "claim": claim.sentence,
                    "verdict": claim.verdict,
                    "contrasts": [
                        {
                            "lower": " ".join(c.lower),
                            "higher": " ".join(c.higher),
                            "test": c.test,
                            "published_difference": c.published,
                            "difference": c.difference.model_dump(),
                            "verdict": c.verdict,
                        }
                        for c in claim.contrasts
                    ],
                }
                for claim in self.claims()
            ],
            "accuracy": {v: [(step, e.model_dump()) for step, e in self.accuracy(v)] for v in VARIANTS},
            "sweeps": {
                sweep: {curve: [(x, _plain(both)) for x, both in line] for curve, line in self.curves(sweep).items()}
                for sweep in dict.fromkeys(point.sweep for cell in self.sweeps for point in cell.points)
            },
        }


def both_tests(wins: Iterable[Wins]) -> BothTests:
    wins = list(wins)
    return {test: estimate([getattr(one, test) for one in wins]) for test in TESTS}


def _plain(both: BothTests) -> dict[str, Any]:
    return {test: value.model_dump() for test, value in both.items()}
