"""An index of K-FAC corrected gradients: once estimated, never again while it grows and shrinks."""

import json

import pytest

from tests.flows.runs import build, files, index_config, modification_times, task_states
from trackstar.flows.cli.tables import index_table
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import InputError

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
    assert index_table(build(tmp_path / "index", llama, corpus, shard_size=5, gradient=gradient)).row_count
