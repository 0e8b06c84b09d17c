"""[n q] scores of a retraining benchmark's corpus and queries: by our flows, as a user runs them, and by bergson."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy import ndarray

from benchmarks.retraining.models import Corpus, Retraining
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.storage.results import PROPONENT
from trackstar.tasks.models.tokens import tokenize_documents, tokenize_queries


@dataclass(frozen=True)
class Traced:
    """The corpus and the checkpoints as files, for whoever scores them."""

    directory: Path
    checkpoints: list[Path]

    @property
    def corpus(self) -> Path:
        return self.directory / "corpus.jsonl"

    def at_each_checkpoint(self) -> list["Traced"]:
        """The same at a time when nothing later had been saved; the last checkpoint is the one that is traced."""
        return [replace(self, checkpoints=self.checkpoints[: number + 1]) for number in range(len(self.checkpoints))]


def write_files(retraining: Retraining, directory: Path) -> Traced:
    traced = Traced(directory, retraining.checkpoints(directory / "checkpoints"))
    documents = [{"id": document.id, "text": document.text} for document in retraining.corpus.documents]
    traced.corpus.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return traced


def build_index(traced: Traced, *, projection_dim: int) -> Path:
    directory = traced.directory / f"index-{traced.checkpoints[-1].name}-k{projection_dim}"
    settings = {
        "checkpoint": str(traced.checkpoints[-1]),
        "index": str(directory),
        "corpus": {"paths": [str(traced.corpus)]},
        "gradient": {"projection_dim": projection_dim},
    }
    index(IndexConfig.model_validate(settings))
    return directory


def our_scores(
    directory: Path, corpus: Corpus, *, methods: Sequence[str], damping: float, **settings: object
) -> dict[str, ndarray]:
    """[n q] of every method over an index, through the flow that a user runs."""
    of_what = f"damping{damping:g}-{len(corpus.queries)}-queries-{len(methods)}-methods"
    out = directory.with_name(f"results-{directory.name}-{of_what}")
    out.mkdir(exist_ok=True)
    queries = out / "queries.jsonl"
    queries.write_text("".join(query.model_dump_json(exclude_defaults=True) + "\n" for query in corpus.queries))
    common = {
        "index": str(directory),
        "queries": str(queries),
        "out": str(out),
        "methods": methods,
        "score": {"top_k": 0, "damping": damping},
        "tail_patch": {"num_proponents": 0},
    }
    compare(CompareConfig.model_validate({**common, **settings}))
    frame = pl.read_parquet(out / "proponents.parquet").filter(pl.col("kind") == PROPONENT)
    return {method: _matrix(frame.filter(pl.col("method") == method), corpus) for method in methods}


def _matrix(frame: pl.DataFrame, corpus: Corpus) -> ndarray:
    rows = {document.id: row for row, document in enumerate(corpus.documents)}
    columns = {query.id: column for column, query in enumerate(corpus.queries)}
    scores = np.full((len(rows), len(columns)), np.nan)
    for query_id, candidate_id, score in frame.select("query_id", "candidate_id", "score").iter_rows():
        scores[rows[candidate_id], columns[query_id]] = score
    assert np.isfinite(scores).all(), "a method ranks every document"
    return scores


def bergson_scores(
    traced: Traced, retraining: Retraining, python: str, *, projection_dim: int, damping: float, downweighted: int
) -> ndarray:
    """[n q] by bergson's TrackStar, on the token ids that ours reads."""
    directory = traced.directory / "bergson"
    directory.mkdir(exist_ok=True)
    texts = [document.text for document in retraining.corpus.documents]
    documents = [(ids, 0) for ids in tokenize_documents(retraining.tokenizer, texts)]
    queries = [tokens[:2] for tokens in tokenize_queries(retraining.tokenizer, retraining.corpus.queries)]
    for name, rows in (("documents", documents), ("queries", queries)):
        lines = [{"input_ids": ids, "labels": [-100] * start + ids[start:], "length": len(ids)} for ids, start in rows]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "checkpoint": str(traced.checkpoints[-1]),
        "documents": str(directory / "documents.jsonl"),
        "queries": str(directory / "queries.jsonl"),
        "run_path": str(directory / "run"),
        "out": str(directory / "scores.npy"),
        "projection_dim": projection_dim,
        "damping": damping,
        "downweighted": downweighted,
        "token_batch_size": 128,  # the model's context, which bergson does not go beyond
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    script = Path(__file__).with_name("bergson_trackstar.py").absolute()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(script), str(directory / "settings.json")]
    subprocess.run(command, check=True, cwd=directory, env=environment, capture_output=True)
    return np.load(directory / "scores.npy")
