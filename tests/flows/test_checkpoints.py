"""One answer from several checkpoints: the weighted sum of what each of them says, matched by id."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, read_scores, score
from tests.numerics.test_shrinkage import naive
from tests.tiny import QUERIES, TEXTS, save_llama
from trackstar.flows.attribute import attribute
from trackstar.flows.cli.commands import respond
from trackstar.flows.config import AttributeConfig, WithdrawConfig
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import InputError
from trackstar.tasks.scoring.shrink import measure

pytestmark = pytest.mark.usefixtures("prefect_server")

RATES = {"checkpoint-20": 3e-4, "checkpoint-10": 1e-4}
KFAC = {"projection_dim": 2, "correction": "kfac"}


@pytest.fixture
def indexes(llama, made_once, corpus, tmp_path):
    """Two checkpoints that know their learning rates; their corpora are cut into different shards."""
    other = made_once("second-llama", lambda directory: save_llama(directory / "checkpoint", seed=1)) / "checkpoint"
    for (name, rate), source, size in zip(RATES.items(), (llama, other), (7, 3), strict=True):
        shutil.copytree(source, tmp_path / "run" / name)
        state = {"global_step": int(name[11:]), "log_history": [{"step": 1, "learning_rate": rate}, {"step": 2}]}
        (tmp_path / "run" / name / "trainer_state.json").write_text(json.dumps(state))
        build(tmp_path / "indexes" / name, tmp_path / "run" / name, corpus, shard_size=size, gradient=KFAC)
    return tmp_path / "indexes"


def asked(out, queries, score=None, **indexes):
    config = {"queries": str(queries), "out": str(out), "score": {"mixing_weight": 0.5, "top_k": 0, **(score or {})}}
    return attribute(AttributeConfig.model_validate({**config, **indexes}))


def test_scores_of_several_checkpoints_are_their_sum_by_learning_rate(indexes, queries, tmp_path):
    alone = {name: score(indexes / name, queries, tmp_path / name, mixing_weight=0.5) for name in RATES}
    expected = 1.5 * alone["checkpoint-20"] + 0.5 * alone["checkpoint-10"]
    record = asked(tmp_path / "out", queries, all_checkpoints=str(indexes))
    np.testing.assert_allclose(read_scores(tmp_path / "out"), expected, atol=1e-9)
    told = record["methods"]["trackstar"]["checkpoints"]
    assert [of["learning_rate"] for of in told] == list(RATES.values())  # the newest first
    assert [of["weight"] for of in told] == pytest.approx([1.5, 0.5])
    assert sum(of["share"] for of in told) == pytest.approx(1)
    shares = pl.read_parquet(tmp_path / "out" / "shares.parquet")
    proponents = pl.read_parquet(tmp_path / "out" / "proponents.parquet")
    place = ["query_id", "method", "kind", "candidate_id"]
    sums = proponents.join(shares.group_by(place).agg(pl.col("part").sum()), on=place)
    assert len(sums) == len(proponents)
    np.testing.assert_allclose(sums["part"], sums["score"], atol=1e-9)
    of_one = shares.filter(pl.col("index") == told[1]["index"]).row(0, named=True)
    query = [q["id"] for q in QUERIES].index(of_one["query_id"])
    assert of_one["part"] == pytest.approx(0.5 * alone["checkpoint-10"][int(of_one["candidate_id"][1:]), query])


def test_the_best_of_several_checkpoints_may_be_shrunk_and_are_without_what_any_has_withdrawn(
    indexes, queries, tmp_path
):
    (tmp_path / "run" / "checkpoint-10" / "trainer_state.json").unlink()
    for name in RATES:
        (tmp_path / "run" / name / "optimizer.pt").unlink()
    withdraw(WithdrawConfig(index=str(indexes / "checkpoint-10"), ids=("d4",)))
    both = {"index": str(indexes / "checkpoint-20"), "further_indexes": [str(indexes / "checkpoint-10")]}
    record = asked(tmp_path / "all", queries, **both)
    told = record["methods"]["trackstar"]
    assert [(of["learning_rate"], of["weight"]) for of in told["checkpoints"]] == [(None, 1.0)] * 2
    assert told["num_candidates"] == len(TEXTS) - 1
    everything = pl.read_parquet(tmp_path / "all" / "proponents.parquet").filter(pl.col("kind") == "proponent")
    assert "d4" not in everything["candidate_id"]
    record = asked(tmp_path / "few", queries, {"top_k": 3, "shrink": 1.0}, **both)
    few = pl.read_parquet(tmp_path / "few" / "proponents.parquet").filter(pl.col("kind") == "proponent")
    for query in QUERIES:
        of_all, of_few = (frame.filter(pl.col("query_id") == query["id"]) for frame in (everything, few))
        assert of_few["candidate_id"].to_list() == of_all["candidate_id"].to_list()[:3]
        shrunk = naive(of_all["score"].to_list(), 1.0)
        np.testing.assert_allclose(of_few["score"], shrunk[:3], atol=1e-6)
        assert record["methods"]["trackstar"]["stands_out"][query["id"]] == np.count_nonzero(shrunk)


def test_indexes_of_other_documents_or_of_one_checkpoint_are_refused(indexes, corpus, queries, tmp_path):
    first, second = (str(indexes / name) for name in RATES)
    command = ["attribute", "--queries", str(queries), "--out", str(tmp_path / "out"), "--index", first, "--index"]
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(InputError, match="of the same checkpoint"):
        asked(tmp_path / "out", queries, index=first, further_indexes=[str(tmp_path / "copy")])
    (corpus / "part-2.jsonl").write_text(json.dumps({"id": "new", "text": "A heron sleeps at noon."}) + "\n")
    build(indexes / "checkpoint-10", tmp_path / "run" / "checkpoint-10", corpus, shard_size=3, gradient=KFAC)
    with pytest.raises(InputError, match=r"checkpoint-10 holds document 'new' and .*checkpoint-20 does not"):
        asked(tmp_path / "out", queries, index=first, further_indexes=[second])
    assert respond([*command, second, "--rerank", "20"]) == 2
    assert respond([*command, second, "--all-checkpoints", str(indexes)]) == 2
    withdraw(WithdrawConfig(index=second, ids=("new",)))
    assert asked(tmp_path / "out", queries, index=first, further_indexes=[second])["num_documents"] == len(TEXTS)


def test_a_spread_needs_as_many_passes_as_queries_where_memory_holds_one(monkeypatch):
    monkeypatch.setattr("trackstar.tasks.scoring.shrink.BYTES_AT_ONCE", 1)
    asked_for = []
    measure(lambda queries: asked_for.append(queries) or [np.ones((1, 1, 4), np.float32)], num_queries=3,
            num_scores=4, z=1.0, where="local")  # fmt: skip
    assert [queries.start for queries in asked_for] == [0, 1, 2]
