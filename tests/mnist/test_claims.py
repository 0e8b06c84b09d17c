import numpy as np
import pytest

from trackstar.tasks.mnist.claims import CLAIMS, PUBLISHED, Way, estimate, judge
from trackstar.tasks.mnist.win_rates import Wins


def models(values, *, shift=0.0):
    """Ten models around the published figures, moved together: differences within a model stay as published."""
    generator = np.random.default_rng(0)
    moves = generator.normal(0, 5, 10)
    return [Wins(same_class=values.same_class + m + shift, right_label=values.right_label + m + shift) for m in moves]


def test_the_published_figures_reproduce_every_claim_of_the_published_account():
    claims = judge({way: models(values) for way, values in PUBLISHED.items()})
    assert {claim.verdict for claim in claims} == {"reproduced"}
    assert len(claims) == len(CLAIMS)


def test_a_difference_the_other_way_is_reversed_and_none_is_undecided():
    wins = {way: models(values) for way, values in PUBLISHED.items()}
    clean, corrected = Way("clean", "gradient"), Way("clean", "corrected")
    wins[corrected] = [Wins(same_class=w.same_class + 3, right_label=w.right_label) for w in wins[clean]]
    claim = next(claim for claim in judge(wins) if claim.sentence.startswith("√V costs"))
    assert claim.verdict == "reversed"
    wins[corrected] = list(wins[clean])
    claim = next(claim for claim in judge(wins) if claim.sentence.startswith("√V costs"))
    assert claim.verdict == "not reproduced"
    assert claim.contrasts[0].verdict == "undecided"


def test_equal_published_figures_claim_nothing():
    wins = {way: models(values) for way, values in PUBLISHED.items()}
    claim = next(claim for claim in judge(wins) if claim.sentence.startswith("√V costs"))
    assert [contrast.test for contrast in claim.contrasts] == ["same_class"]  # labels: 100.0 before and after


def test_an_interval_holds_its_mean_and_is_the_same_every_time():
    values = [1.0, 2.0, 4.0, 9.0]
    assert estimate(values) == estimate(values)
    assert estimate(values).value == pytest.approx(4.0)
    assert estimate(values).low < 4 < estimate(values).high
