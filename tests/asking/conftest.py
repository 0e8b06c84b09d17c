"""Indexes to ask, built once a session and without Prefect, and the scores that ``attribute`` gives over them."""

import json

import polars as pl
import pytest

from tests.flows.runs import index_config
from tests.tiny import QUERIES, TEXTS
from trackstar.flows.attribute import attribute
from trackstar.flows.config import AttributeConfig
from trackstar.flows.index import index as index_flow

EXTRA = [{"source": f"part {number % 2}"} for number in range(len(TEXTS))]


def write_corpus(directory):
    directory.mkdir()
    half = len(TEXTS) // 2
    for number, part in enumerate((range(half), range(half, len(TEXTS)))):
        lines = [json.dumps({"id": f"d{index}", "text": TEXTS[index], **EXTRA[index]}) + "\n" for index in part]
        (directory / f"part-{number}.jsonl").write_text("".join(lines))
    return directory


def build(directory, checkpoint, *paths, **settings):
    return index_flow.fn(index_config(directory, checkpoint, *paths, **settings))


@pytest.fixture(scope="session")
def asked_corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("asked") / "corpus")


@pytest.fixture(scope="session")
def llama_index(llama, asked_corpus, tmp_path_factory):
    """No factors, norms or spectrum: nobody has asked it anything."""
    return build(tmp_path_factory.mktemp("asked-llama") / "index", llama, asked_corpus)


@pytest.fixture(scope="session")
def gpt2_index(gpt2, asked_corpus, tmp_path_factory):
    """A full second moment, concatenated blocks, a context shorter than some texts, and factors that are there."""
    gradient = {"projection_dim": 4, "pooling": "concatenate"}
    directory = tmp_path_factory.mktemp("asked-gpt2") / "index"
    found = build(directory, gpt2, asked_corpus, gradient=gradient, mode="full")
    attributed(found.path, [QUERIES[0]], tmp_path_factory.mktemp("gpt2-results"), whitening="train")
    return found


@pytest.fixture(scope="session")
def flat_index(llama, asked_corpus, tmp_path_factory):
    """Corrected by K-FAC, with no R_train."""
    gradient = {"projection_dim": 4, "correction": "kfac"}
    return build(tmp_path_factory.mktemp("asked-flat") / "index", llama, asked_corpus, gradient=gradient)


def attributed(index, queries, out, **settings):
    """Every document's score by ``attribute``: query id to candidate id to score."""
    path = out / "asked.jsonl"
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    config = {"index": str(index), "queries": str(path), "out": str(out), "score": {"top_k": 0, **settings}}
    attribute.fn(AttributeConfig.model_validate(config))
    frame = pl.read_parquet(out / "proponents.parquet").filter(pl.col("kind") == "proponent")
    found = {}
    for row in frame.iter_rows(named=True):
        found.setdefault(row["query_id"], {})[row["candidate_id"]] = row["score"]
    return found
