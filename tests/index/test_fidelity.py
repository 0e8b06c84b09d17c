"""What a store loses is measured on its own rows, without withdrawn documents."""

import numpy as np
import pytest

from tests.flows.runs import build
from tests.tiny import TEXTS
from trackstar.flows.cli.tables import index_facts
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.withdraw import withdraw
from trackstar.storage.codes import CODES
from trackstar.storage.gradients import as_stored
from trackstar.storage.layout import FIDELITY
from trackstar.storage.matrices import read_arrays
from trackstar.tasks.index import fidelity as stage
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.models.tokens import tokenize_documents
from trackstar.tasks.numerics.fidelity import fidelity

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.parametrize("store_as", CODES)
def test_an_index_says_what_its_code_loses_unless_it_loses_nothing(llama, corpus, tmp_path, store_as):
    built = build(tmp_path / "index", llama, corpus, store_as=store_as)
    facts = index_facts(built)
    assert facts["store"].startswith(f"{store_as}, {sum(map(CODES[store_as].row_bytes, built.block_dims.values()))} by")
    if store_as == "float32":
        assert built.fidelity is None
        assert "beside float32" not in facts
        return
    engine = Engine(built.engine)
    sequences = tokenize_documents(engine.tokenizer, TEXTS)
    _, exact = engine.gradients(sequences, first_targets=[1] * len(TEXTS))
    expected = fidelity(exact, as_stored(exact, store_as), top_k=10)
    found = read_arrays(built.path / built.fidelity.name, FIDELITY)
    np.testing.assert_allclose(found["correlations"], expected[1], atol=1e-3)  # batches differ, and so does rounding
    assert built.fidelity.facts["num_documents"] == len(TEXTS)
    assert f"scores correlate at {expected[1].mean():.2f}" in facts["beside float32"]


def test_a_sample_leaves_out_what_was_withdrawn_and_is_none_of_too_few(llama, corpus, tmp_path, monkeypatch):
    built = build(tmp_path / "index", llama, corpus, store_as="sign", shard_size=5)
    withdraw(WithdrawConfig(index=str(built.path), ids=("d1", "d7")))
    again = build(tmp_path / "index", llama, corpus, store_as="sign", shard_size=5)
    assert again.fidelity.facts["num_documents"] == len(TEXTS) - 2
    monkeypatch.setattr(stage, "SMALLEST_SAMPLE", len(TEXTS) - 1)
    assert build(tmp_path / "index", llama, corpus, store_as="sign", shard_size=5).fidelity is None
