"""An index of axes: chosen once, never again while it grows and shrinks; and sizes that a number of bytes chooses."""

import json

import numpy as np
import pytest

from tests.flows.runs import build, files, index_config, score, task_states
from tests.tiny import QUERIES, TEXTS
from trackstar.flows.cli.tables import index_facts
from trackstar.flows.config import IndexConfig, ReindexConfig, WithdrawConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import withdraw
from trackstar.storage.codes import CODES
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import as_stored
from trackstar.storage.queries import Query
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.models.tokens import tokenize_documents, tokenize_queries

AXES = {"correction": "ekfac", "projection": "axes", "num_axes": 300}


def scores_of(directory, store_as, mixing_weight):
    """From the vectors of the engine: documents as they are stored, queries whole, R = (1-λ) s I + λ QᵀQ / n."""
    engine = Engine(read_index(str(directory)).engine)
    documents = tokenize_documents(engine.tokenizer, TEXTS)
    _, rows = engine.gradients(documents, first_targets=[1] * len(documents))
    asked = tokenize_queries(engine.tokenizer, [Query.model_validate(query) for query in QUERIES])
    _, queries = engine.gradients([q.ids for q in asked], first_targets=[q.completion_start for q in asked])
    left, right = [], []
    for block, stored in as_stored(rows, store_as).items():
        phi, q = stored.astype(np.float64), queries[block].astype(np.float64)
        R = (1 - mixing_weight) * np.mean(phi**2) * np.eye(phi.shape[1]) + mixing_weight * q.T @ q / len(q)
        values, vectors = np.linalg.eigh(R)
        root = (vectors / np.sqrt(values)) @ vectors.T
        left.append(phi @ root)
        right.append(q @ root)
    left, right = np.concatenate(left, axis=1), np.concatenate(right, axis=1)
    return (left / np.linalg.norm(left, axis=1)[:, None]) @ (right / np.linalg.norm(right, axis=1)[:, None]).T


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("store_as", CODES)
def test_scores_of_axes_are_those_of_the_definition_in_every_code(llama, corpus, queries, tmp_path, store_as):
    built = build(tmp_path / "index", llama, corpus, gradient=AXES, store_as=store_as)
    assert sum(built.block_dims.values()) == 300
    found = score(tmp_path / "index", queries, tmp_path / "out", mixing_weight=0.5)
    np.testing.assert_allclose(found, scores_of(tmp_path / "index", store_as, 0.5), atol=1e-4)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("family", "correction", "store_as"), [("llama", "ekfac", "sign"), ("gpt2", "kfac", "int8")])
def test_axes_are_chosen_once_in_the_life_of_an_index(request, corpus, queries, tmp_path, family, correction, store_as):
    gradient = {**AXES, "correction": correction}
    checkpoint = request.getfixturevalue(family)
    config = index_config(tmp_path / "index", checkpoint, corpus, shard_size=5, gradient=gradient, store_as=store_as)
    task_states(index, config)
    kept = ("shards", "axes", "kronecker")
    before = {kind: files(tmp_path / "index" / kind) for kind in kept}
    lost = files(tmp_path / "index" / "fidelity")
    assert {state for _, state in task_states(index, config)} == {"Cached"}

    (corpus / "part-2.jsonl").write_text(json.dumps({"id": "new", "text": "A heron sleeps at noon."}) + "\n")
    computed = [name for name, state in task_states(index, config) if state != "Cached"]
    assert not [name for name in computed if "axes" in name or "Kronecker" in name or "variances" in name]
    withdraw(WithdrawConfig(index=config.index, ids=("d1",)))
    for kind in kept:
        after = files(tmp_path / "index" / kind)
        assert {name: after[name] for name in before[kind]} == before[kind]
    grown = files(tmp_path / "index" / "fidelity")  # of the documents there are now
    assert len(grown) == len(lost)
    assert not lost.keys() & grown.keys()
    assert index_facts(read_index(config.index))["projection"].startswith("300 of 1,")
    with pytest.raises(InputError, match="num_axes 300, and this run asks for 299"):
        build(tmp_path / "index", checkpoint, corpus, shard_size=5, gradient={**gradient, "num_axes": 299})


@pytest.mark.usefixtures("prefect_server")
def test_bytes_choose_k_or_axes_which_the_index_records_and_asks_for_again(llama, corpus, tmp_path):
    small = {"preset": "small", "bytes_per_document": 100, "gradient": {"correction": "kfac"}}
    built = build(tmp_path / "axes", llama, corpus, **small)
    num_bytes = sum(CODES["sign"].row_bytes(dims) for dims in built.block_dims.values())
    gradient = read_index(str(tmp_path / "axes")).engine.gradient
    assert (gradient.projection, sum(built.block_dims.values())) == ("axes", gradient.num_axes)
    assert 100 - len(built.block_dims) < num_bytes <= 100
    assert index_facts(built)["store"] == f"sign, {num_bytes} bytes a document"
    again = task_states(index, index_config(tmp_path / "axes", llama, corpus, **small))
    assert {state for _, state in again} == {"Cached"}
    with pytest.raises(InputError, match=rf"num_axes {gradient.num_axes}, and this run asks for"):
        build(tmp_path / "axes", llama, corpus, **{**small, "bytes_per_document": 101})

    two_sided = {"correction": "v", "projection": "two_sided"}
    built = build(tmp_path / "k", llama, corpus, bytes_per_document=1000, gradient=two_sided)
    assert read_index(str(tmp_path / "k")).engine.gradient.projection_dim == 7  # 4 blocks of 4 · 49 bytes; 8 take 1024
    assert set(built.block_dims.values()) == {49}


def config(**settings) -> IndexConfig:
    return IndexConfig.model_validate({"checkpoint": "c", "index": "i", "corpus": {"paths": ["t.jsonl"]}, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"gradient": {"projection": "axes"}},
            "the correction is v, which has no eigenbasis; add --correction ekfac",
        ),
        ({"bytes_per_document": 9}, "the projection is axes and the correction is v"),
        (
            {"gradient": {"num_axes": 9}},
            "9 axes are to be kept and the projection is two_sided, .* leave",
        ),
        ({"gradient": {**AXES, "projection_dim": 8}}, "--projection-dim is 8 and the projection is axes"),
        ({"gradient": {**AXES, "pooling": "concatenate"}}, "--pooling is concatenate and the projection is axes"),
        ({"gradient": {**AXES, "projection_rows": "orthonormal"}}, "the projection is axes, which has no rows"),
        (
            {"bytes_per_document": 999, "preset": "small", "gradient": {"projection_dim": 64}},
            "--bytes-per-document is 999 and --projection-dim 64; give one of them",
        ),
        ({"bytes_per_document": 999, "gradient": AXES}, "--bytes-per-document is 999 and --num-axes 300; give one"),
        ({"bytes_per_document": 999, "gradient": {"projection": "none"}}, "the projection none, which keeps whole"),
    ],
)
def test_sizes_that_take_no_part_or_say_two_things_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        config(**settings).check()
    given = {"checkpoints": "c", "indexes": "i", "corpus": {"paths": ["t.jsonl"]}, **settings}
    with pytest.raises(InputError, match=words):
        ReindexConfig.model_validate(given).check()


def test_axes_change_no_identity_of_an_index_that_is_there():
    assert "num_axes" not in config().gradient.identity()
    axes = config(gradient=AXES).gradient.identity()
    assert axes["num_axes"] == 300
    assert not axes.keys() & {"projection_dim", "projection_rows", "pooling"}
