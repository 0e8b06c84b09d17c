import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from upath import UPath

from tests.flows.runs import build
from tests.tiny import QUERIES, TEXTS, save_llama
from trackstar.flows.config import AttributeConfig, IndexConfig, ReindexConfig, WithdrawConfig
from trackstar.flows.promote import promote_by_hand, rollback
from trackstar.flows.reindex import reindex
from trackstar.flows.withdraw import withdraw
from trackstar.storage.current import serving_of
from trackstar.storage.errors import InputError, PartlyDoneError
from trackstar.storage.results import queries_shown
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.reindex.lineage import lineage

pytestmark = pytest.mark.usefixtures("prefect_server")

LOOSE = {"gates": {"probability": 1, "mrr": 1}}  # models of other seeds know other queries better


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
    first = run(**LOOSE)
    assert names(first.indexed) == names(first.asked) == ["step-1"]
    assert first.drifts == []
    assert run(**LOOSE).is_idle
    save_llama(tmp_path / "run" / "step-2", seed=1)
    whole = (tmp_path / "run" / "step-2" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "step-2" / "model.safetensors").write_bytes(whole[:-1])
    half = run(**LOOSE)
    assert half.is_idle
    assert "half written" in half.waiting["step-2"]
    (tmp_path / "run" / "step-2" / "model.safetensors").write_bytes(whole)
    second = run(keep_last=1, **LOOSE)
    assert names(second.indexed) == names(second.drifts) == ["step-2"]
    assert second.removed == []  # it served before
    assert (names(first.promoted), names(second.promoted)) == (["step-1"], ["step-2"])
    drift = json.loads((tmp_path / "indexes" / "results" / second.drifts[0] / "drift.json").read_bytes())
    assert [moved["query"]["id"] for moved in drift["queries"]] == [query["id"] for query in QUERIES]
    assert run(keep_last=1, **LOOSE).is_idle
    save_llama(tmp_path / "run" / "step-3", seed=2)
    third = run(keep_last=1, **LOOSE)
    assert names(third.removed) == ["step-1"]
    kept = {entry.name for entry in (tmp_path / "indexes").iterdir() if entry.is_dir()}
    assert kept == {*second.indexed, *third.indexed, "results"}


def untrained(directory):
    """A checkpoint that has forgotten everything."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    model.save_pretrained(directory)


def test_a_bad_checkpoint_is_held_back_by_name_and_numbers_and_the_next_good_one_serves(run, tmp_path, queries):
    indexes = tmp_path / "indexes"
    (first,) = run().promoted
    untrained(shutil.copytree(tmp_path / "run" / "step-1", tmp_path / "run" / "step-2"))
    with pytest.raises(
        PartlyDoneError, match=r"step-2-\w+: .*the completions are .* times as probable as before .*gate-probability"
    ) as held:
        run()
    (bad,) = held.value.done.held
    assert serving_of(UPath(indexes)).index == first
    found = json.loads((indexes / "results" / bad / "gates.json").read_bytes())
    assert {gate["name"]: gate["holds"] for gate in found["gates"]}["probability"] is False
    assert {gate["name"]: gate["value"] for gate in found["gates"]}["agreement"] > 0.999  # rounding
    assert run().is_idle  # an alarm rings once
    config = {"index": str(indexes), "queries": str(queries), "out": str(tmp_path / "out")}
    assert AttributeConfig.model_validate(config).index == str(indexes / first)
    promote_by_hand(str(indexes), bad)
    assert AttributeConfig.model_validate(config).index == str(indexes / bad)
    assert rollback(str(indexes)).index == first
    # Bounds that it holds to: a person has rolled back from it, and so it stays.
    assert run(**LOOSE).promoted == []
    shutil.copytree(tmp_path / "run" / "step-1", tmp_path / "run" / "step-3")
    config = json.loads((tmp_path / "run" / "step-3" / "config.json").read_text())
    (tmp_path / "run" / "step-3" / "config.json").write_text(json.dumps({**config, "note": "another content"}))
    assert names(run().promoted) == ["step-3"]


def test_a_withdrawal_from_all_indexes_holds_for_the_present_and_for_the_next_one(run, tmp_path):
    indexes = tmp_path / "indexes"
    (first,) = run(score={"top_k": 0}).indexed

    def remove(*ids):
        return withdraw(WithdrawConfig(index=str(indexes), ids=ids, reason="consent"))

    with pytest.raises(InputError, match="no index here has a document 'd99'"):
        remove("d1", "d99")
    done = remove("d1")
    assert (done.indexes, done.num_withdrawn) == ([first], 1)
    assert done.answers == {first: ["q0", "q1", "q2"]}
    found = lineage(read_index(str(indexes / first)), "d1")
    assert (found.file, found.row, found.step) == (str(tmp_path / "corpus" / "part-0.jsonl"), 1, 1)
    assert found.withdrawn.endswith("consent")
    assert found.answers == done.answers
    with pytest.raises(InputError, match="no document 'd99'"):
        lineage(read_index(str(indexes / first)), "d99")
    assert (read_index(str(indexes / first)).num_withdrawn, remove("d1").indexes) == (1, [])
    save_llama(tmp_path / "run" / "step-2", seed=1)
    later = run(score={"top_k": 0}, **LOOSE)
    (second,) = later.indexed
    assert later.asked == [first, second]  # what showed it is asked again
    index = read_index(str(indexes / second))
    assert (index.num_withdrawn, index.autocorrelation.facts["num_documents"]) == (1, len(TEXTS) - 1)
    for name in (first, second):
        assert queries_shown(UPath(indexes) / "results" / name, {"d1"}) == []
    # An index that came from elsewhere is promoted by nobody before the withdrawal holds there.
    build(indexes / "copied", tmp_path / "run" / "step-1", tmp_path / "corpus")
    with pytest.raises(InputError, match="still has 'd1'"):
        promote_by_hand(str(indexes), "copied")
    assert remove("d1").indexes == ["copied"]
    assert promote_by_hand(str(indexes), "copied").index == "copied"


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
