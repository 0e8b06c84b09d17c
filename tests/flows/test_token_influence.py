"""The stage that reads proponents token by token: shares add up to the ranking's scores, and lie on the text."""

import polars as pl
import pytest

from tests.flows.runs import index_config
from trackstar.flows.index import index as index_flow
from trackstar.storage.layout import RANKING, TOKEN_INFLUENCE
from trackstar.storage.queries import read_queries
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import each_text
from trackstar.tasks.scoring.rank import encode, rank
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.token_influence import TokenInfluenceConfig, read_tokens, token_request

pytestmark = pytest.mark.numerical

# a score of the float32 store and one summed in float64 over tokens; float32 gradients have seven digits
SCORE_TOLERANCE = 1e-5


def ranked_and_read(index, asked, config):
    encoded = encode(index, asked)
    ranking = rank(index, encoded, config, method="trackstar", dask="local")
    return ranking, read_tokens(token_request(index, encoded, ranking, config, TokenInfluenceConfig(num_proponents=4)))


@pytest.mark.parametrize(
    ("family", "mode", "gradient", "score"),
    [
        ("llama", "factored", {"projection_dim": 4}, {"mixing_weight": 0.9}),
        ("gpt2", "full", {"projection_dim": 4, "pooling": "concatenate"}, {"mixing_weight": 0.5}),
        ("gpt2", "factored", {"projection": "none"}, {"whitening": "none", "unit_norm": False}),
    ],
)
def test_the_shares_of_a_proponents_tokens_add_up_to_its_score_in_texts_of_one_window_or_several(
    request, family, mode, gradient, score, corpus, queries, tmp_path
):
    checkpoint = request.getfixturevalue(family)
    index = index_flow.fn(index_config(tmp_path / "index", checkpoint, corpus, gradient=gradient, mode=mode))
    config = ScoreConfig.model_validate({"top_k": 6, **score})
    ranking, tokens = ranked_and_read(index, read_queries(queries), config)
    shares = read_table(tokens.path(str(index.path)), TOKEN_INFLUENCE)
    scores = read_table(ranking.path(str(index.path)), RANKING).filter(
        (pl.col("kind") == "proponent") & (pl.col("rank") <= 4)
    )
    place = ["query_id", "candidate_id"]
    sums = shares.group_by(place).agg(pl.col("share", "input_share").sum())
    both = scores.join(sums, on=place, how="left", validate="1:1")
    assert len(both) == 12
    largest = both["score"].abs().max()
    for column in ("share", "input_share"):
        assert (both["score"] - both[column]).abs().max() < SCORE_TOLERANCE * largest
    assert (shares.filter(pl.col("position") == 0)["share"] == 0).all()  # the first token is predicted from nothing
    assert tokens.facts["largest_difference"] < SCORE_TOLERANCE * largest
    texts = dict(each_text(index.shard_paths))
    for (_, candidate_id), rows in shares.group_by(place):
        spans = rows.filter(pl.col("stop") > pl.col("start")).sort("position").select("start", "stop").rows()
        text = texts[candidate_id]
        assert "".join(text[start:stop] for start, stop in spans).replace(" ", "") == text.replace(" ", "")
