"""What a report is made from. Only the model, the corpus, the queries, the rankings and the texts are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from trackstar.storage.results import QueryLike
from trackstar.tasks.evaluation.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model itself says to a query.

    Attributes:
        probability: Of the completion given the prompt.
        answer: The model's own continuation.
        warnings: What is to be known of how the query was read.
    """

    probability: float | None = None
    answer: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """How the R behind the scores was made.

    Attributes:
        mixing_weight: λ of R = λ R_eval + (1-λ) R_train.
        damping: Unitless, relative to the mean eigenvalue of R_train.
        crossing: The component at which the weighted spectra cross.
        facts: What the spectra say about R_train and R_eval, as label to value.
        spectra: Name (``λ R_eval``, ``(1-λ) R_train``) to values, all blocks together, in any order.
    """

    mixing_weight: float | None = None
    damping: float | None = None
    crossing: int | None = None
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is known about one gradient method beyond its ranking.

    Attributes:
        tokens: Columns query_id, candidate_id, start, stop, share: the part that each token of a proponent, the
            characters [start, stop) of its text, has in its score.
        histograms: Columns query_id, low, high, counts: all scores of a query, in equal bins.
        evidence: Columns query_id, candidate_id, score, for the evidence of a query wherever it ranks.
    """

    method: str
    tokens: pl.DataFrame | None = None
    histograms: pl.DataFrame | None = None
    evidence: pl.DataFrame | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report can show.

    Attributes:
        proponents: A result table; the order in which its methods appear is the order of the columns.
        texts: Text of every candidate that is shown (``report_views.shown_candidates``).
        predictions: By query id.
        tail_patch: Columns query_id, method, candidate_id, probability_change.
        facts: What there is to know about the run, as label to value.
        costs: Method to label to value (time, memory, …).
        explanation: Of the method whose influence is set against the evidence.
        num_quarantined: Documents that could not be used.
        num_proponents: How many of each method are shown per query.
        num_opponents: Likewise.
    """

    model: str
    corpus: str
    queries: Sequence[QueryLike]
    proponents: pl.DataFrame
    texts: Mapping[str, str]
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    metrics: Metrics | None = None
    tail_patch: pl.DataFrame | None = None
    facts: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    curvature: Curvature | None = None
    costs: Mapping[str, Mapping[str, str | int | float]] = field(default_factory=dict)
    explanation: Explanation | None = None
    num_quarantined: int | None = None
    num_proponents: int = 10
    num_opponents: int = 5
