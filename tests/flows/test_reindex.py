import json
import shutil

import pytest

from tests.flows.runs import build
from tests.tiny import QUERIES, save_llama
from trackstar.flows.config import AttributeConfig, IndexConfig, ReindexConfig
from trackstar.flows.reindex import reindex
from trackstar.storage.errors import InputError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(llama, corpus, queries, tmp_path):
    """Reindex ``tmp_path/run``, where step-1 is."""
    shutil.copytree(llama, tmp_path / "run" / "step-1")
    config = {
        "checkpoints": str(tmp_path / "run"),
        "indexes": str(tmp_path / "indexes"),
        "corpus": {"paths": [str(corpus)]},
        "queries": str(queries),
        "gradient": {"projection_dim": 4},
    }
    return lambda **settings: reindex(ReindexConfig.model_validate({**config, **settings}))


def names(entries):
    return [name.rpartition("-")[0] for name in entries]


def test_each_new_checkpoint_is_indexed_once_asked_and_compared_with_the_one_before(run, tmp_path):
    first = run()
    assert names(first.indexed) == names(first.asked) == ["step-1"]
    assert first.drifts == []
    assert run().is_idle
    save_llama(tmp_path / "run" / "step-2", seed=1)
    whole = (tmp_path / "run" / "step-2" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "step-2" / "model.safetensors").write_bytes(whole[:-1])
    half = run()
    assert half.is_idle
    assert "half written" in half.waiting["step-2"]
    (tmp_path / "run" / "step-2" / "model.safetensors").write_bytes(whole)
    second = run(keep_last=1)
    assert names(second.indexed) == names(second.drifts) == ["step-2"]
    assert names(second.removed) == ["step-1"]
    drift = json.loads((tmp_path / "indexes" / "results" / second.drifts[0] / "drift.json").read_bytes())
    assert [moved["query"]["id"] for moved in drift["queries"]] == [query["id"] for query in QUERIES]
    assert sorted(entry.name for entry in (tmp_path / "indexes").iterdir()) == sorted([*second.indexed, "results"])
    assert run(keep_last=1).is_idle


def test_whatever_an_index_can_be_built_with_a_reindex_can_too():
    of_one_index = {"checkpoint", "index"}
    assert set(IndexConfig.model_fields) - of_one_index <= set(ReindexConfig.model_fields)


def test_a_query_typed_in_gives_the_scores_it_has_in_a_file(llama, corpus, tmp_path):
    from trackstar.flows.attribute import attribute

    build(tmp_path / "index", llama, corpus)
    (tmp_path / "one.jsonl").write_text(json.dumps({**QUERIES[0], "id": "typed"}))
    common = {"index": str(tmp_path / "index"), "score": {"top_k": 0, "mixing_weight": 0.5}}
    asked = {"prompt": QUERIES[0]["prompt"], "completion": QUERIES[0]["completion"]}
    attribute(
        AttributeConfig.model_validate({**common, "out": str(tmp_path / "a"), "queries": str(tmp_path / "one.jsonl")})
    )
    attribute(AttributeConfig.model_validate({**common, "out": str(tmp_path / "b"), **asked}))
    tables = [(tmp_path / out / "proponents.parquet").read_bytes() for out in "ab"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("asked", [{}, {"queries": "q.jsonl", "completion": "x"}, {"prompt": "p"}, {"completion": " "}])
def test_both_ways_of_asking_neither_or_an_empty_completion_are_refused(asked):
    with pytest.raises(InputError, match="completion"):
        AttributeConfig(index="i", out="o", **asked).asked()
