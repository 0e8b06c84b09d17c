"""What a notebook asks of an index: tables, chosen documents, influence by source, no repetition."""

import json

import numpy as np
import polars as pl
import pytest

from tests.flows.runs import build, score
from tests.tiny import QUERIES, TEXTS
from trackstar.flows import attribute
from trackstar.flows.config import WithdrawConfig
from trackstar.flows.withdraw import withdraw
from trackstar.storage.errors import InputError

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.numerical]

ASKED = [{name: query[name] for name in ("id", "prompt", "completion")} for query in QUERIES]
WEIGHT = {"mixing_weight": 0.9}


def source(number):
    return None if number == 3 else f"source-{number % 3}"


@pytest.fixture
def index(llama, tmp_path):
    rows = [{"id": f"d{n}", "text": text, "source": source(n)} for n, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(tmp_path / "index", llama, tmp_path / "corpus.jsonl", corpus={
        "paths": [str(tmp_path / "corpus.jsonl")], "shard_size": 7, "extra_columns": ["source"],
    })  # fmt: skip
    return tmp_path / "index"


def test_a_call_gives_the_rankings_of_the_flow_as_a_table_with_texts(index, queries, tmp_path):
    expected = score(index, queries, tmp_path / "out", **WEIGHT)
    frame = attribute(str(index), ASKED, top_k=3, **WEIGHT)
    assert len(frame) == len(QUERIES) * 2 * 3
    for row in frame.iter_rows(named=True):
        number = int(row["candidate_id"][1:])
        assert row["text"] == TEXTS[number]
        query = [query["id"] for query in QUERIES].index(row["query_id"])
        assert row["score"] == expected[number, query]
    assert attribute.attribute.name == "attribute"  # the deployment's entrypoint is where it was


def test_chosen_documents_have_the_scores_of_the_ranking(index, queries, tmp_path):
    expected = score(index, queries, tmp_path / "out", **WEIGHT)
    found = attribute.scores(str(index), str(queries), ["d13", "d2"], mixing_weights=[0.5], **WEIGHT)
    assert found["candidate_id"].unique(maintain_order=True).to_list() == ["d13", "d2"]
    own = found.filter(pl.col("method") == "trackstar")
    # Two weights are products of other shapes than one, so their float64 sums may be taken in another order.
    np.testing.assert_allclose(own["score"].to_numpy().reshape(-1, 2).T, expected[[13, 2]], rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="no document 'd99'"):
        attribute.scores(str(index), str(queries), ["d1", "d99"])


def test_influence_by_source_is_the_sum_and_mean_of_its_documents_that_are_left(index, queries, tmp_path):
    withdraw(WithdrawConfig(index=str(index), ids=("d4",)))
    everything = attribute(str(index), str(queries), top_k=0, **WEIGHT).filter(pl.col("kind") == "proponent")
    of = {f"d{n}": source(n) for n in range(len(TEXTS))}
    expected = (
        everything.with_columns(source=pl.col("candidate_id").replace_strict(of))
        .group_by("query_id", "source")
        .agg(num_documents=pl.len(), sum=pl.col("score").sum(), mean=pl.col("score").mean())
        .sort("query_id", "source", nulls_last=True)
    )
    found = attribute.by_column(str(index), str(queries), "source", **WEIGHT)
    found = found.sort("query_id", "source", nulls_last=True)
    assert found["source"].to_list() == expected["source"].to_list()
    assert found["num_documents"].to_list() == expected["num_documents"].to_list()
    for name in ("sum", "mean"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
    with pytest.raises(InputError, match=r"no column 'date'.*--extra-columns date"):
        attribute.by_column(str(index), str(queries), "date")


def test_near_duplicates_fold_into_the_best_of_them_and_others_move_up():
    texts = [
        "the cat sat on the mat today",
        "The cat sat on the  mat today",
        "a dog ran",
        "the cat sat on the mat again and again",
    ]
    rows = {"query_id": "q", "method": "trackstar", "kind": "proponent", "rank": [1, 2, 3, 4]}
    frame = pl.DataFrame({**rows, "candidate_id": ["a", "b", "c", "d"], "score": [4.0, 3.0, 2.0, 1.0], "text": texts})
    found = attribute.collapse_duplicates(frame)
    assert found.select("rank", "candidate_id").rows() == [(1, "a"), (2, "c"), (3, "d")]
    assert found["duplicate_ids"].to_list() == [["b"], [], []]
    assert len(attribute.collapse_duplicates(frame, similarity=0.3)) == 2


def test_a_column_that_every_document_has_anyway_is_refused(llama, corpus, tmp_path):
    with pytest.raises(ValueError, match="loss"):
        build(tmp_path / "index", llama, corpus, corpus={"paths": [str(corpus)], "extra_columns": ["loss"]})
