"""The published figures, the claims of order they make, and whether ours make them too.

A claim is a set of contrasts, each "this way of scoring wins more often than that one". A contrast is judged on the
differences between the two on the same models: reproduced where the 95 % interval of their mean lies above zero,
reversed where it lies below, undecided where it holds zero. Where the published figures are equal nothing is claimed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from trackstar.tasks.evaluation.metrics import Estimate
from trackstar.tasks.mnist.model import Variant
from trackstar.tasks.mnist.win_rates import Wins
from trackstar.tasks.numerics.metrics import bootstrap_interval

BOOTSTRAP_SEED = 0
Verdict = Literal["reproduced", "undecided", "reversed"]
Test = Literal["same_class", "right_label"]
TESTS: tuple[Test, ...] = ("same_class", "right_label")


class Way(NamedTuple):
    """A row of the table: which data, which vectors and whitening, dot product or cosine."""

    variant: Variant
    encoding: str
    norm: Literal["dot", "cosine"] = "cosine"


PUBLISHED: Mapping[Way, Wins] = {
    Way(*way): Wins(same_class=same_class, right_label=right_label)
    for way, same_class, right_label in (
        (("clean", "gradient", "dot"), 96.8, 100.0),
        (("clean", "gradient"), 100.0, 100.0),
        (("noisy", "gradient", "dot"), 69.2, 69.6),
        (("noisy", "gradient"), 72.8, 70.8),
        (("clean", "corrected"), 95.4, 100.0),
        (("noisy", "corrected"), 95.4, 99.7),
        (("clean", "two_sided"), 71.9, 72.7),
        (("clean", "one_sided"), 86.9, 89.2),
        (("clean", "two_sided_train"), 64.1, 65.4),
        (("clean", "one_sided_train"), 60.6, 61.6),
        (("clean", "two_sided_mixed"), 76.1, 76.0),
        (("clean", "one_sided_mixed"), 66.4, 67.0),
    )
}


@dataclass(frozen=True)
class Claim:
    """A sentence and its contrasts, each (the one that wins less, the one that wins more)."""

    sentence: str
    contrasts: tuple[tuple[Way, Way], ...]


CLAIMS = (
    Claim(
        "Normalisation helps",
        (
            (Way("clean", "gradient", "dot"), Way("clean", "gradient")),
            (Way("noisy", "gradient", "dot"), Way("noisy", "gradient")),
        ),
    ),
    Claim("Nuisance features break the raw score", ((Way("noisy", "gradient"), Way("clean", "gradient")),)),
    Claim("Division by √V repairs it", ((Way("noisy", "gradient"), Way("noisy", "corrected")),)),
    Claim("√V costs a little on clean data", ((Way("clean", "corrected"), Way("clean", "gradient")),)),
    Claim("Before R, one-sided beats two-sided", ((Way("clean", "two_sided"), Way("clean", "one_sided")),)),
    Claim(
        "R from training gradients alone hurts here",
        (
            (Way("clean", "two_sided_train"), Way("clean", "two_sided")),
            (Way("clean", "one_sided_train"), Way("clean", "one_sided")),
        ),
    ),
    Claim(
        "Mixing recovers part of it",
        (
            (Way("clean", "two_sided_train"), Way("clean", "two_sided_mixed")),
            (Way("clean", "one_sided_train"), Way("clean", "one_sided_mixed")),
        ),
    ),
    Claim(
        "After R, two-sided is ahead",
        (
            (Way("clean", "one_sided_train"), Way("clean", "two_sided_train")),
            (Way("clean", "one_sided_mixed"), Way("clean", "two_sided_mixed")),
        ),
    ),
)


@dataclass(frozen=True)
class JudgedContrast:
    """One contrast on one test: the published difference, ours, and what follows."""

    lower: Way
    higher: Way
    test: Test
    published: float
    difference: Estimate

    @property
    def verdict(self) -> Verdict:
        if self.difference.low > 0:
            return "reproduced"
        return "reversed" if self.difference.high < 0 else "undecided"


@dataclass(frozen=True)
class JudgedClaim:
    sentence: str
    contrasts: tuple[JudgedContrast, ...]

    @property
    def verdict(self) -> str:
        """reproduced or reversed where all contrasts are, else how many are reproduced."""
        verdicts = {contrast.verdict for contrast in self.contrasts}
        if verdicts in ({"reproduced"}, {"reversed"}):
            return verdicts.pop()
        count = sum(contrast.verdict == "reproduced" for contrast in self.contrasts)
        return f"reproduced in {count} of {len(self.contrasts)}" if count else "not reproduced"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over models and its bootstrap interval."""
    return _estimate(tuple(values))


@lru_cache(maxsize=1 << 14)  # a page shows most numbers more than once
def _estimate(values: tuple[float, ...]) -> Estimate:
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    low, high = bootstrap_interval(np.array(values), generator=generator)
    return Estimate(value=float(np.mean(values)), low=low, high=high)


def judge(wins: Mapping[Way, Sequence[Wins]]) -> list[JudgedClaim]:
    """Every claim, from the win rates of each way of scoring on the same models in the same order."""
    return [
        JudgedClaim(
            claim.sentence,
            tuple(
                _judge_contrast(wins, lower, higher, test)
                for lower, higher in claim.contrasts
                for test in TESTS
                if _published_difference(lower, higher, test) > 0
            ),
        )
        for claim in CLAIMS
    ]


def _judge_contrast(wins: Mapping[Way, Sequence[Wins]], lower: Way, higher: Way, test: Test) -> JudgedContrast:
    pairs = zip(wins[higher], wins[lower], strict=True)
    differences = [getattr(more, test) - getattr(less, test) for more, less in pairs]
    return JudgedContrast(lower, higher, test, _published_difference(lower, higher, test), estimate(differences))


def _published_difference(lower: Way, higher: Way, test: Test) -> float:
    return round(getattr(PUBLISHED[higher], test) - getattr(PUBLISHED[lower], test), 1)
