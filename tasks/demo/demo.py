"""The demo's own two steps: a corpus of facts, and a model trained on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict

from trackstar.storage.digests import digest_file
from trackstar.storage.layout import location
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.queries import Query, read_queries
from trackstar.storage.results import write_text
from trackstar.tasks.demo.corpus import DemoCorpusConfig, build_demo_corpus, write_demo_corpus
from trackstar.tasks.demo.training import (
    TrainingConfig,
    completion_probabilities,
    num_steps,
    read_texts,
    train_demo_model,
)
from trackstar.tasks.models.checkpoint import ModelConfig, load_model, load_tokenizer, read_checkpoint
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, stage

LEARNT_QUERIES = "learnt-queries.jsonl"


class DemoCorpusFiles(BaseModel):
    """Where the demo's corpus and its candidate queries lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: tuple[str, ...]
    queries: str


class TrainingRequest(StageRequest):
    """A checkpoint to be trained on the demo's corpus."""

    kind: ClassVar[str] = "checkpoints"
    version: ClassVar[int] = 1

    files: DemoCorpusFiles
    config: TrainingConfig

    @property
    def label(self) -> str:
        return f"train on {len(self.files.corpus)} files"

    def inputs(self) -> dict[str, Any]:
        corpus = [digest_file(location(path)) for path in self.files.corpus]
        return {"corpus": corpus, "config": self.config.model_dump()}


def write_demo_files(config: DemoCorpusConfig, directory: str) -> DemoCorpusFiles:
    """Write the corpus and its queries; the same config writes the same bytes."""
    corpus, queries = write_demo_corpus(build_demo_corpus(config), Path(directory))
    return DemoCorpusFiles(corpus=tuple(map(str, corpus)), queries=str(queries))


@stage
def train(request: TrainingRequest, draft: Draft) -> None:
    """Train the demo's model from scratch and save an ordinary Hugging Face checkpoint with its optimizer."""
    files = [Path(path) for path in request.files.corpus]
    total = num_steps(request.config, len(read_texts(files)))
    with progress(request.label, total=total, unit="steps") as advance, _one_thread():
        train_demo_model(request.config, corpus_files=files, directory=Path(str(draft.path)), advance=advance)
    draft.facts |= {"num_steps": total}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Rounding depends on the number of threads, and matrices this small gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_learnt_queries(files: DemoCorpusFiles, checkpoint: Artifact, root: str) -> str:
    """Keep the queries whose completion the model itself would say; return the file they are in."""
    found = read_checkpoint(str(checkpoint.path(root)))
    queries = read_queries(files.queries)
    model, tokenizer = load_model(found, ModelConfig(device="cpu")), load_tokenizer(found, ModelConfig())
    answers = completion_probabilities(model, tokenizer, queries)
    learnt = [query for query, answer in zip(queries, answers, strict=True) if answer.is_greedy]
    target = location(files.queries).parent / LEARNT_QUERIES
    write_text(target, "".join(f"{_line(query)}\n" for query in learnt))
    return str(target)


def _line(query: Query) -> str:
    return query.model_dump_json(exclude_defaults=True)
