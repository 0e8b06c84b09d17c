"""Withdrawn documents: out of every ranking, and not back by indexing again."""

import json

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, index_config, score, task_states
from tests.tiny import QUERIES, TEXTS, save_encoder
from trackstar.flows.attribute import attribute
from trackstar.flows.cli.tables import directory_outcome
from trackstar.flows.compare import compare
from trackstar.flows.config import AttributeConfig, CompareConfig, IndexConfig, WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import InputError
from trackstar.tasks.methods.registry import METHODS
from trackstar.tasks.models.engine import Engine

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.numerical]

GONE = ("d1", "d14", "d15")


@pytest.fixture
def built(indexed):
    return indexed(shard_size=5, curvature={"group_shards": 1})


def remove(directory, *ids, reason="consent", ids_file=None):
    return withdraw(WithdrawConfig(index=str(directory), ids=ids, ids_file=ids_file and str(ids_file), reason=reason))


def ask(directory, queries, out, **settings):
    settings = {"top_k": 0, "mixing_weight": 0.9, **settings}
    config = {"index": str(directory), "queries": str(queries), "out": str(out), "score": settings}
    attribute(AttributeConfig.model_validate(config))
    return pl.read_parquet(out / "proponents.parquet").sort("method", "query_id", "kind", "candidate_id")


def printed(renderable):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_withdrawing_equals_an_index_that_never_had_the_documents(built, llama, corpus, queries, tmp_path):
    (tmp_path / "ids.txt").write_text("d14\nd15\n")
    changed = remove(built, "d1", ids_file=tmp_path / "ids.txt")
    assert (changed.num_withdrawn, changed.autocorrelation.facts["num_documents"]) == (3, len(TEXTS) - 3)
    for file in sorted(corpus.iterdir()):
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["id"] not in GONE]
        (tmp_path / "rest").mkdir(exist_ok=True)
        (tmp_path / "rest" / file.name).write_text("".join(f"{line}\n" for line in lines))
    # the same V: it is the optimizer's
    build(tmp_path / "scratch", llama, tmp_path / "rest", shard_size=5)
    found = ask(built, queries, tmp_path / "out")
    expected = ask(tmp_path / "scratch", queries, tmp_path / "out2")
    assert found.select("query_id", "kind", "candidate_id").equals(expected.select("query_id", "kind", "candidate_id"))
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)


def test_what_was_withdrawn_stays_so_when_the_corpus_is_indexed_again_and_grows(
    built, llama, corpus, queries, tmp_path, monkeypatch
):
    remove(built, *GONE)
    monkeypatch.setattr(Engine, "gradients", None)  # nothing is computed again
    again = index(index_config(built, llama, corpus, shard_size=5, curvature={"group_shards": 1}))
    assert again.num_withdrawn == 3
    monkeypatch.undo()
    (built / "index.json").unlink()  # nor by losing this
    (corpus / "part-2.jsonl").write_text(json.dumps({"id": "new", "text": "A heron sleeps at noon."}) + "\n")
    grown = index(index_config(built, llama, corpus, shard_size=5, curvature={"group_shards": 1}))
    assert (grown.num_withdrawn, grown.total("num_documents")) == (3, len(TEXTS) + 1)
    ids = set(ask(built, queries, tmp_path / "out")["candidate_id"])
    assert ids == {f"d{n}" for n in range(len(TEXTS))} - set(GONE) | {"new"}


def test_an_appended_file_costs_its_own_shards_and_the_sums_that_are_open(built, llama, corpus):
    build(built, llama, corpus, shard_size=5, curvature={"group_shards": 1})  # what Prefect alone keeps, it has now
    (corpus / "part-2.jsonl").write_text(json.dumps({"id": "new", "text": "A heron sleeps at noon."}) + "\n")
    config = index_config(built, llama, corpus, shard_size=5, curvature={"group_shards": 1})
    states = [(name.split(" on ")[0], state) for name, state in task_states(index, config)]
    computed = [name for name, state in states if state != "Cached"]
    assert sorted(computed) == ["Gram matrices of 1 documents", "R of 21 documents", "checkpoint", "plan part-2.jsonl"]
    kept = {kind: len(list((built / kind).iterdir())) for kind in ("shards", "grams", "autocorrelation")}
    assert kept == {"shards": 5, "grams": 5, "autocorrelation": 1}  # R_train of before is gone


def test_no_method_of_a_comparison_ranks_a_withdrawn_document(built, queries, tmp_path):
    remove(built, *GONE)
    config = {
        "index": str(built), "queries": str(queries), "out": str(tmp_path / "out"), "methods": METHODS,
        "dense_encoder": str(save_encoder(tmp_path / "encoder")), "tail_patch": {"num_proponents": 0},
        "influence": {"damping": 10.0, "tolerance": 0.01},  # who is ranked is asked here, not how well
    }  # fmt: skip
    compare(CompareConfig.model_validate(config))
    frame = pl.read_parquet(tmp_path / "out" / "proponents.parquet")
    assert set(frame["method"]) == set(METHODS)
    assert not set(GONE) & set(frame["candidate_id"])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["num_withdrawn"] == 3
    assert record["methods"]["trackstar"]["spectra"]["R_train"]["rank"] > 0


def test_show_says_what_was_withdrawn_when_and_why_and_what_R_train_is_like(built, queries, tmp_path):
    remove(built, "d0")
    remove(built, "d0", "d2", reason="[red]wrong[/]")
    ask(built, queries, tmp_path / "out")
    shown = printed(directory_outcome(str(built)).table)
    assert "1 documents consent" in shown
    assert "1 documents [red]wrong[/]" in shown
    assert "effective dimension" in shown
    assert "of 18 documents" in shown


def test_an_id_of_no_document_is_refused_and_changes_nothing(built):
    before = (built / "index.json").read_bytes()
    with pytest.raises(InputError, match="no document 'd99'"):
        remove(built, "d1", "d99")
    assert (built / "index.json").read_bytes() == before


def test_one_pass_scores_every_mixing_weight_as_a_run_of_its_own_does(built, queries, tmp_path):
    together = ask(built, queries, tmp_path / "out", mixing_weights=[0.0, 0.5])
    assert set(together["method"]) == {"trackstar", "trackstar@0", "trackstar@0.5"}
    alone = score(built, queries, tmp_path / "alone", mixing_weight=0.5)
    found = together.filter((pl.col("method") == "trackstar@0.5") & (pl.col("kind") == "proponent"))
    by_pair = {(row["query_id"], row["candidate_id"]): row["score"] for row in found.iter_rows(named=True)}
    asked = [query["id"] for query in QUERIES]
    together = [[by_pair[q, f"d{n}"] for q in asked] for n in range(len(TEXTS))]
    # Three weights are products of other shapes than one, so their float64 sums may be taken in another order.
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-12)


def test_R_train_of_a_sample_is_that_of_so_many_documents(llama, corpus, tmp_path):
    config = index_config(tmp_path / "index", llama, corpus, curvature={"sample": 6})
    assert isinstance(config, IndexConfig)
    assert index(config).autocorrelation.facts["num_documents"] == 6
