"""What a report says about one gradient method beyond its ranking: the tokens of its proponents, all of its scores."""

from collections.abc import Sequence
from typing import NamedTuple

from trackstar.storage.layout import EVIDENCE_SCORES, HISTOGRAM, TOKEN_INFLUENCE
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index
from trackstar.tasks.methods.settings import TRACKSTAR
from trackstar.tasks.report.data import Explanation
from trackstar.tasks.scoring.histogram import count_scores, histogram_request
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.token_influence import TokenInfluenceConfig, read_tokens, token_request


class Explained(NamedTuple):
    """The artifacts behind an explanation; the tokens are None where none were to be read."""

    method: str
    tokens: Artifact | None
    histogram: Artifact


class ExplanationConfig(NamedTuple):
    """How the scores were made, how much of them is explained, and where."""

    score: ScoreConfig
    tokens: TokenInfluenceConfig
    dask: str


def explain(
    index: Index,
    queries: Sequence[Query],
    encoded: Artifact,
    rankings: Sequence[Artifact],
    config: ExplanationConfig,
) -> Explained | None:
    """Read TrackStar's proponents token by token and count its scores; None where it is not among the rankings."""
    ranking = next((ranking for ranking in rankings if ranking.facts["method"] == TRACKSTAR), None)
    if ranking is None:
        return None
    counting = histogram_request(index, encoded, ranking, config.score, queries)
    reading = token_request(index, encoded, ranking, config.score, config.tokens)
    return Explained(
        method=TRACKSTAR,
        tokens=read_tokens(reading) if config.tokens.num_proponents else None,
        histogram=count_scores(counting.model_copy(update={"dask": config.dask})),
    )


def read_explanation(index: Index, explained: Explained | None) -> Explanation | None:
    """The tables of an explanation."""
    if explained is None:
        return None
    root, directory = str(index.path), explained.histogram.path(str(index.path))
    return Explanation(
        method=explained.method,
        tokens=explained.tokens and read_table(explained.tokens.path(root), TOKEN_INFLUENCE),
        histograms=read_table(directory, HISTOGRAM),
        evidence=read_table(directory, EVIDENCE_SCORES),
    )
