"""The two tests every way of scoring is put to, each a share of comparisons won, in percent.

Both are means over all comparisons there are, not over a sample of them; a tie is half a win. 50 is chance.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata

from trackstar.tasks.mnist.model import Fitted


class Wins(BaseModel):
    """Both tests, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    same_class: float
    right_label: float


def compare_wins(scores: Sequence[ndarray], fitted: Fitted) -> Wins:
    """Both tests from the scores of the first so many candidates, with their own label and with the wrong one."""
    right, wrong = scores
    labels = fitted.labels[: right.shape[0]].numpy()
    query_labels = fitted.query_labels[: right.shape[1]].numpy()
    return Wins(
        same_class=same_class_wins(right, labels, query_labels),
        right_label=right_label_wins(right, wrong, labels, query_labels),
    )


def same_class_wins(scores: ndarray, labels: ndarray, query_labels: ndarray) -> float:
    """How often a candidate of the query's class scores above one of another class: a mean over queries.

    Args:
        scores: [n q].
        labels: Classes of the candidates [n].
        query_labels: Classes of the queries [q].
    """
    same = labels[:, None] == query_labels[None, :]
    num_same = same.sum(axis=0)
    asked = (num_same > 0) & (num_same < len(labels))  # a class that no candidate, or every one, has compares nothing
    ranks = rankdata(scores[:, asked], axis=0)
    # Mann and Whitney: pairs won = sum of ranks − n (n + 1) / 2
    won = (ranks * same[:, asked]).sum(axis=0) - num_same[asked] * (num_same[asked] + 1) / 2
    return float(100 * np.mean(won / (num_same[asked] * (len(labels) - num_same[asked]))))


def right_label_wins(right: ndarray, wrong: ndarray, labels: ndarray, query_labels: ndarray) -> float:
    """How often a candidate of the query's class scores higher with its own label than with the wrong one."""
    same = labels[:, None] == query_labels[None, :]
    won = (right > wrong) + 0.5 * (right == wrong)
    return float(100 * won[same].mean())
