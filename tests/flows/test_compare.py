"""Every method through the flow that compares them: against the definition, and no work that none asked for."""

import json

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, files, modification_times
from tests.oracle import Oracle
from tests.reference import influence
from tests.tiny import QUERIES, TEXTS, save_classifier, save_encoder, save_llama
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig
from trackstar.storage.errors import InputError
from trackstar.storage.layout import COST
from trackstar.storage.results import PROPONENT
from trackstar.tasks.models.checkpoint import read_checkpoint

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.numerical]

TOLERANCE = 1e-4  # gradients are float32, of which products and R^-1 cost a few digits
DAMPING = 0.3
NUM_DOCUMENTS = len(TEXTS)
PROJECTION = {"projection_dim": 4, "pooled": True}


@pytest.fixture(scope="module")
def oracle(llama):
    return Oracle(llama, TEXTS, QUERIES)


@pytest.fixture
def index(indexed):
    return indexed()


def run(index, queries, out, *methods, num_documents=NUM_DOCUMENTS, **settings):
    """Metrics, and the scores [n q] of each method by name."""
    config = {
        "index": str(index), "queries": str(queries), "out": str(out), "methods": methods,
        "score": {"top_k": 0, "damping": DAMPING, "mixing_weight": 0.9}, "tail_patch": {"num_proponents": 0},
        **settings,
    }  # fmt: skip
    metrics = compare(CompareConfig.model_validate(config))
    frame = pl.read_parquet(out / "proponents.parquet").filter(pl.col("kind") == PROPONENT)
    rows = frame.select("method", "query_id", "candidate_id", "score").iter_rows()
    found = {(method, query, candidate): score for method, query, candidate, score in rows}
    ids = [query["id"] for query in QUERIES]
    return metrics, {
        method: np.array([[found[method, query, f"d{n}"] for query in ids] for n in range(num_documents)])
        for method in methods
    }


def test_methods_without_v_are_those_of_the_definition_on_plain_gradients(index, oracle, queries, tmp_path):
    methods = {
        "no_v": {"whitening": "mixed", "unit_norm": True},
        "trak": {"whitening": "train", "unit_norm": False},
        "grad_dot": {"whitening": "none", "unit_norm": False},
        "grad_cosine": {"whitening": "none", "unit_norm": True},
    }
    _, scores = run(index, queries, tmp_path / "out", *methods)
    for method, settings in methods.items():
        expected = influence(*oracle.vectors("none", **PROJECTION), mixing_weight=0.9, damping=DAMPING, **settings)
        np.testing.assert_allclose(scores[method], expected, atol=TOLERANCE * np.abs(expected).max(), err_msg=method)


def test_mixed_is_mixed_whatever_the_options_say(index, oracle, queries, tmp_path):
    score = {"top_k": 0, "damping": DAMPING, "mixing_weight": 0.9, "whitening": "train"}
    _, scores = run(index, queries, tmp_path / "out", "trackstar", "mixed", "train_only", score=score)
    expected = influence(*oracle.vectors("factored", **PROJECTION), mixing_weight=0.9, damping=DAMPING)
    np.testing.assert_allclose(scores["mixed"], expected, atol=TOLERANCE)
    np.testing.assert_array_equal(scores["trackstar"], scores["train_only"])
    assert not np.allclose(scores["trackstar"], scores["mixed"], atol=TOLERANCE)


def test_tracin_sums_over_the_checkpoints_it_is_given(index, oracle, queries, tmp_path):
    (tmp_path / "other").mkdir()
    other = save_llama(tmp_path / "other" / "checkpoint", seed=1)
    _, scores = run(index, queries, tmp_path / "out", "grad_dot", "grad_cosine", also_checkpoints=[str(other)])
    both = [oracle.vectors("none", **PROJECTION), Oracle(other, TEXTS, QUERIES).vectors("none", **PROJECTION)]
    for method, unit_norm in (("grad_dot", False), ("grad_cosine", True)):
        settings = {"mixing_weight": 0.0, "damping": 0.0, "whitening": "none", "unit_norm": unit_norm}
        expected = sum(influence(*vectors, **settings) for vectors in both)
        np.testing.assert_allclose(scores[method], expected, atol=TOLERANCE * np.abs(expected).max())


def test_influence_functions_are_those_of_the_dense_gauss_newton_matrix(llama, queries, tmp_path):
    texts = TEXTS[:2]
    lines = [json.dumps({"id": f"d{number}", "text": text}) + "\n" for number, text in enumerate(texts)]
    (tmp_path / "few.jsonl").write_text("".join(lines))
    build(tmp_path / "few", llama, tmp_path / "few.jsonl")
    settings = {"influence": {"damping": 1.0, "tolerance": 1e-5}, "num_documents": len(texts)}
    _, scores = run(tmp_path / "few", queries, tmp_path / "out", "influence", **settings)
    oracle = Oracle(llama, texts, QUERIES)
    documents, asked = (np.concatenate(blocks, axis=1) for blocks in oracle.vectors("none"))
    H = oracle.gauss_newton()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["methods"]["influence"]
    assert facts["mean_eigenvalue"] == pytest.approx(np.trace(H) / len(H), rel=0.2)  # 32 random probes
    expected = documents @ np.linalg.solve(H + facts["mean_eigenvalue"] * np.eye(len(H)), asked.T)
    # The norms of a Llama compute in float32 whatever its precision.
    np.testing.assert_allclose(scores["influence"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_dense_scores_are_cosines_of_mean_pooled_states_and_hybrid_fuses_ranks(index, queries, tmp_path):
    encoder = save_encoder(tmp_path / "encoder")
    methods = ("trackstar", "bm25", "dense", "hybrid")
    _, scores = run(index, queries, tmp_path / "out", *methods, dense_encoder=str(encoder))
    texts = [f"{query['prompt']}{query['completion']}" for query in QUERIES]
    expected = embeddings(encoder, TEXTS) @ embeddings(encoder, texts).T
    np.testing.assert_allclose(scores["dense"], expected, atol=1e-5)  # float32 states
    frame = pl.read_parquet(tmp_path / "out" / "proponents.parquet").filter(pl.col("kind") == PROPONENT)
    ranks = {row[:3]: row[3] for row in frame.select("method", "query_id", "candidate_id", "rank").iter_rows()}
    for column, query in enumerate(QUERIES):
        for row in range(len(TEXTS)):
            fused = sum(1 / (60 + ranks[method, query["id"], f"d{row}"]) for method in ("trackstar", "bm25"))
            assert scores["hybrid"][row, column] == pytest.approx(fused)


def embeddings(encoder, texts):
    """One text at a time, so that nothing is padded."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    means = torch.stack([rows.mean(0) for rows in states]).double().numpy()
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_plain_gradients_are_computed_once_and_only_where_a_method_asks(index, queries, tmp_path):
    run(index, queries, tmp_path / "out1", "trackstar", "bm25")
    assert not (index / "plain_shards").exists()
    run(index, queries, tmp_path / "out2", "grad_cosine", "no_v")
    before = modification_times(index / "plain_shards")
    content = gradients_in(index)
    assert len(list((index / "plain_shards").iterdir())) == 4  # two files of ten documents in shards of seven
    run(index, queries, tmp_path / "out3", "trak", "grad_dot")
    assert modification_times(index / "plain_shards") == before
    lost = next((index / "plain_shards").iterdir())
    lost.rename(tmp_path / "lost")
    run(index, queries, tmp_path / "out4", "grad_dot", "no_v")
    assert gradients_in(index) == content


def gradients_in(index):
    """Without the seconds that they took, which are of no artifact."""
    return {name: content for name, content in files(index / "plain_shards").items() if not name.endswith(COST)}


def test_evidence_is_found_in_the_texts_by_the_aliases_of_an_answer(index, queries, tmp_path):
    asked = [{**query, "relevant_ids": None} for query in QUERIES[:2]]
    asked[1]["aliases"] = ["Wien"]
    (tmp_path / "aliases.jsonl").write_text("".join(json.dumps(query) + "\n" for query in [*asked, QUERIES[2]]))
    metrics, _ = run(index, tmp_path / "aliases.jsonl", tmp_path / "out", "bm25")
    assert metrics.evidence == "aliases and relevant_ids"
    assert metrics.num_queries_by_evidence == {"aliases": 1, "relevant_ids": 1}
    lines = (tmp_path / "out" / "proponents.jsonl").read_text().splitlines()
    line = next(line for line in map(json.loads, lines) if line["example_id"] == "q1")
    vienna = {f"d{number}" for number, text in enumerate(TEXTS) if "Vienna" in text}
    assert len(vienna) == 4
    pairs = zip(line["proponent_ids"], line["proponent_correct"], strict=True)
    assert {name for name, is_evidence in pairs if is_evidence} == vienna


def pool_of(index):
    """Query and candidate to entailment, from all judgements of an index; a pair is judged once."""
    tables = [pl.read_parquet(path) for path in sorted((index / "judgements").glob("*/judgements.parquet"))]
    pairs = {row[:2]: row[2] for table in tables for row in table.iter_rows()}
    assert len(pairs) == sum(map(len, tables))
    return pairs


def test_an_entailment_model_judges_the_pool_of_the_queries_that_nothing_else_labels(index, tmp_path):
    asked = [{**query, "relevant_ids": None} for query in QUERIES[:2]] + [QUERIES[2]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    model = save_classifier(tmp_path / "nli")
    settings = {"entailment_model": str(model), "entailment": {"threshold": 0.2, "depth": 3}}
    metrics, scores = run(index, tmp_path / "asked.jsonl", tmp_path / "out", "trackstar", "bm25", **settings)
    pool = pool_of(index)
    first = {name: np.argsort(-of_method, axis=0, kind="stable")[:3] for name, of_method in scores.items()}
    expected = {(f"q{q}", f"d{row}") for found in first.values() for q in range(2) for row in found[:, q]}
    assert set(pool) == expected
    entailed = {pair for pair, value in pool.items() if value >= 0.2}
    assert 0 < len(entailed) < len(pool)
    assert metrics.evidence == "entailment and relevant_ids"
    assert metrics.num_queries_by_evidence == {"entailment": len({query for query, _ in entailed}), "relevant_ids": 1}
    assert {row["query_id"]: set(row["evidence"]) for row in evidence_of(tmp_path / "out")} == {
        query["id"]: {name for asked, name in entailed if asked == query["id"]} or set(query["relevant_ids"] or ())
        for query in asked
    }
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["pool"]
    assert written == {
        "model": "nli", "digest": read_checkpoint(str(model)).digest, "threshold": 0.2, "depth": 3,
        "num_queries": 2, "num_documents": len(pool), "num_evidence": len(entailed),
    }  # fmt: skip
    assert f"{len(pool)} passages for 2 queries" in (tmp_path / "out" / "report.html").read_text()


def evidence_of(out):
    """The proponents of each query that its line of the JSON Lines output calls correct; none where none is known."""
    for line in map(json.loads, (out / "proponents.jsonl").read_text().splitlines()):
        pairs = zip(line["proponent_ids"], line.get("proponent_correct", ()), strict=False)
        yield {"query_id": line["example_id"], "evidence": [name for name, is_evidence in pairs if is_evidence]}


def test_what_was_judged_is_not_judged_again_and_a_further_method_adds_what_it_alone_found(index, tmp_path):
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({**q, "relevant_ids": None}) + "\n" for q in QUERIES))
    settings = {"entailment_model": str(save_classifier(tmp_path / "nli")), "entailment": {"depth": 2}}
    run(index, tmp_path / "asked.jsonl", tmp_path / "out1", "bm25", "trackstar", **settings)
    before = modification_times(index / "judgements")
    settings["entailment"]["threshold"] = 0.9
    run(index, tmp_path / "asked.jsonl", tmp_path / "out2", "bm25", "trackstar", **settings)
    assert modification_times(index / "judgements") == before
    run(index, tmp_path / "asked.jsonl", tmp_path / "out3", "bm25", "trackstar", "random", **settings)
    pool_of(index)
    after = modification_times(index / "judgements")
    assert before.items() < after.items()
    assert len({name.split("/")[0] for name in after}) == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"methods": ["dense"]}, "give both the method dense and --dense-encoder DIR"),
        ({"methods": ["bm25"], "dense_encoder": "{llama}"}, "give both the method dense and --dense-encoder DIR"),
        ({"methods": ["bm25"], "also_checkpoints": ["{llama}"]}, "add one of them, or leave out --also-checkpoints"),
        ({"methods": ["grad_dot"], "also_checkpoints": ["nowhere"]}, "which does not exist"),
        ({"methods": ["dense"], "dense_encoder": "nowhere"}, "which does not exist"),
        ({"entailment_model": "{llama}"}, "for queries with neither; leave it out"),
    ],
)
def test_a_method_that_lacks_what_it_needs_is_refused_before_any_work(
    index, llama, queries, tmp_path, settings, sentence
):
    filled = json.loads(json.dumps(settings).replace("{llama}", str(llama)))
    config = {"index": str(index), "queries": str(queries), "out": str(tmp_path / "out"), **filled}
    with pytest.raises(InputError, match=sentence):
        compare(CompareConfig.model_validate(config))
    assert not (tmp_path / "out").exists()


def test_influence_functions_of_a_large_corpus_are_refused_with_the_cost(index, queries, tmp_path, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.methods.influence.LARGEST_WORK", 1000)
    with pytest.raises(InputError, match="1e\\+03 is the most; ask fewer queries, take a smaller model"):
        run(index, queries, tmp_path / "out", "influence")
