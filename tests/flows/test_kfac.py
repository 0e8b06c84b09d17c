"""An index of K-FAC corrected gradients: once estimated, never again while it grows and shrinks."""

import io
import json

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from tests.flows.runs import build, files, index_config, modification_times, score, task_states
from tests.index.test_kronecker import FactorOracle
from tests.reference import influence
from tests.tiny import TEXTS
from trackstar.flows.cli.tables import directory_outcome
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import InputError

SCORE_TOLERANCE = 1e-4  # float32 gradients
KFAC = {"projection_dim": 4, "correction": "kfac"}

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
def test_factors_are_estimated_once_in_the_life_of_an_index(llama, corpus, tmp_path, correction):
    gradient = {"projection_dim": 4, "correction": correction}
    config = index_config(tmp_path / "index", llama, corpus, shard_size=5, gradient=gradient)
    task_states(index, config)
    before, times = files(tmp_path / "index" / "shards"), modification_times(tmp_path / "index" / "shards")
    assert {state for _, state in task_states(index, config)} == {"Cached"}

    (corpus / "part-2.jsonl").write_text(json.dumps({"id": "new", "text": "A heron sleeps at noon."}) + "\n")
    computed = [name for name, state in task_states(index, config) if state != "Cached"]
    assert not [name for name in computed if "Kronecker" in name or "variances" in name]
    assert sum(" on part-" in name for name in computed) == 1
    withdraw(WithdrawConfig(index=config.index, ids=("d1",)))
    after = files(tmp_path / "index" / "shards")
    assert {name: after[name] for name in before} == before
    now = modification_times(tmp_path / "index" / "shards")
    assert {name: now[name] for name in times} == times
    for changed, words in (
        ({"gradient": {**gradient, "correction": "v"}}, f"correction {correction}, and this run asks for v"),
        ({"gradient": {**gradient, "factor_damping": 0.1}}, "factor_damping 0.01, and this run asks for 0.1"),
        ({"gradient": gradient, "factors": {"labels": "empirical"}}, "labels sampled, and this run asks for empirical"),
    ):
        with pytest.raises(InputError, match=words):
            build(tmp_path / "index", llama, corpus, shard_size=5, **changed)


def test_scores_without_R_train_are_those_of_the_definition(llama, corpus, queries, tmp_path):
    build(tmp_path / "index", llama, corpus, gradient=KFAC)
    documents, asked = FactorOracle(llama, labels="sampled").pooled(4)
    for number, settings in enumerate(
        [
            {"mixing_weight": 0.9},
            {"mixing_weight": 0.5, "unit_norm": False},
            {"whitening": "train"},
            {"whitening": "none"},
        ]
    ):
        expected = influence(documents, asked, **{"mixing_weight": 0.0, "is_flat": True, **settings})
        found = score(tmp_path / "index", queries, tmp_path / f"out{number}", **settings)
        np.testing.assert_allclose(found, expected, atol=SCORE_TOLERANCE * np.abs(expected).max(), err_msg=settings)
    left = {path.name for path in (tmp_path / "index").iterdir()}
    assert not left & {"autocorrelation", "grams", "factors", "spectrum", "train_norms"}


def test_damping_has_nothing_to_act_on_and_R_train_may_be_had_all_the_same(llama, corpus, queries, tmp_path):
    build(tmp_path / "index", llama, corpus, gradient=KFAC)
    with pytest.raises(InputError, match=r"damping is 0.1, and .* has no R_train .* index with --autocorrelation on"):
        score(tmp_path / "index", queries, tmp_path / "out", damping=0.1)
    before = files(tmp_path / "index" / "shards")
    build(tmp_path / "index", llama, corpus, gradient=KFAC, curvature={"autocorrelation": "on"})
    assert files(tmp_path / "index" / "shards") == before
    documents, asked = FactorOracle(llama, labels="sampled").pooled(4)
    expected = influence(documents, asked, mixing_weight=0.9, damping=0.1)
    found = score(tmp_path / "index", queries, tmp_path / "out", mixing_weight=0.9, damping=0.1)
    np.testing.assert_allclose(found, expected, atol=SCORE_TOLERANCE)
    sampled = {"autocorrelation": "off", "sample": 5}
    with pytest.raises(InputError, match="R_train is to come from a sample of 5 documents, and there is to be none"):
        build(tmp_path / "other", llama, corpus, curvature=sampled)
    assert not (tmp_path / "other").exists()


def test_an_index_without_R_train_is_compared_by_every_method_and_withdraws(llama, corpus, queries, tmp_path):
    build(tmp_path / "index", llama, corpus, gradient=KFAC)
    withdraw(WithdrawConfig(index=str(tmp_path / "index"), ids=("d1",)))
    methods = ["trackstar", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_cosine", "bm25"]
    config = {
        "index": str(tmp_path / "index"), "queries": str(queries), "out": str(tmp_path / "out"), "methods": methods,
        "tail_patch": {"num_proponents": 1},
    }  # fmt: skip
    compare(CompareConfig.model_validate(config))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["factors"]["num_documents"] == len(TEXTS)
    assert [run["methods"][name]["damping"] for name in ("trackstar", "no_v", "trak")] == [None, 0.1, 0.1]
    frame = pl.read_parquet(tmp_path / "out" / "proponents.parquet")
    assert set(frame["method"]) == set(methods)
    assert "d1" not in frame["candidate_id"]
    printed = Console(width=200, file=io.StringIO())
    printed.print(directory_outcome(str(tmp_path / "index")).table)
    assert "the identity times each block's mean square" in printed.file.getvalue()
    assert "not settled" in printed.file.getvalue()
