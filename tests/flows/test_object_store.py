"""The flows on object storage against the same flows on a directory, with a real S3 server on the loopback address."""

import polars as pl
import pytest

from tests.flows.runs import build, score
from tests.index.test_object_store import bucket  # noqa: F401  (a fixture)
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.withdraw import withdraw

# botocore and aiohttp close sockets when they are collected
pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.filterwarnings("default", "ignore::ResourceWarning"),
]


def test_index_attribute_and_withdraw_on_an_object_store_give_the_scores_of_a_directory(
    llama,
    corpus,
    queries,
    tmp_path,
    bucket,  # noqa: F811
):
    frames = []
    for name, directory in (("local", tmp_path / "index"), ("s3", f"{bucket}/index")):
        built = build(directory, llama, corpus, curvature={"group_shards": 1})
        assert len(built.grams) == len(built.shards)
        score(directory, queries, tmp_path / name, mixing_weight=0.9)
        withdraw(WithdrawConfig(index=str(directory), ids=("d3",)))
        frames.append(pl.read_parquet(tmp_path / name / "proponents.parquet"))
    assert frames[0].equals(frames[1])
