"""Many small models of one shape, trained from scratch on parts of one corpus: what scores are held against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from transformers import Adafactor, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.facts.corpus import PROVINCE, FactsConfig, build_facts_corpus
from trackstar.storage.queries import Query
from trackstar.tasks.demo.corpus import Document
from trackstar.tasks.demo.training import (
    TrainingConfig,
    batches,
    completion_probabilities,
    learning_rate_factor,
    new_model,
    save_checkpoint,
    take_step,
    train_tokenizer,
)

CORPUS = FactsConfig(queries_per_cell=7, num_decoys=1)
LEAST_STATEMENTS = 4  # of a queried fact: what is stated once is there or not, and nothing about it is additive
TRAINING = TrainingConfig(
    vocabulary_size=768, hidden_size=64, intermediate_size=128, num_layers=2, num_epochs=12, batch_size=16,
    learning_rate=4e-3,
)  # fmt: skip
NUM_MATRICES = 7 * TRAINING.num_layers  # that are attributed
# The model has to meet the queries' phrasing about other facts; more than this only makes training longer.
KEPT = {"query": 200, "practice": 400, "background": 100}


@dataclass(frozen=True)
class Corpus:
    """What is trained on and asked."""

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]


def build_corpus() -> Corpus:
    """All statements and decoys of the facts that are stated often, with some of what surrounds them; no provinces."""
    whole = build_facts_corpus(CORPUS)
    often = {id_ for id_, frequency in whole.frequencies.items() if frequency >= LEAST_STATEMENTS}
    queries = tuple(query for query in whole.queries if query.id in often and not query.id.startswith(PROVINCE))
    asked, left = {query.id for query in queries}, dict(KEPT)
    kept = []
    for document in whole.documents:
        if f"{PROVINCE}/" in document.id:
            continue
        fact = document.id.removeprefix("decoy/").rpartition("/")[0]
        kind = "query" if document.id.endswith("/query") else document.kind
        if fact in asked or left.get(kind, 0) > 0:
            kept.append(document)
            left[kind] = left.get(kind, 0) - (fact not in asked)
    return Corpus(tuple(kept), queries)


class Retraining:
    """Models of one shape on parts of one corpus, each known by the log-probabilities of the answers."""

    def __init__(self, corpus: Corpus, directory: Path) -> None:
        texts = [document.text for document in corpus.documents]
        self.corpus, self._directory = corpus, directory
        self.tokenizer: PreTrainedTokenizerFast = train_tokenizer(texts, vocabulary_size=TRAINING.vocabulary_size)
        self._sentences = [torch.tensor(ids) for ids in self.tokenizer(texts)["input_ids"]]
        directory.mkdir(parents=True, exist_ok=True)

    def outputs(self, rows: Sequence[int], *, seed: int, name: str) -> ndarray:
        """log p(answer) [q] after training on these rows."""
        path = self._directory / f"{name}-seed{seed}.npy"
        if not path.exists():
            model = self.train(rows, seed=seed)
            answers = completion_probabilities(model, self.tokenizer, self.corpus.queries)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, np.log([answer.probability for answer in answers]))
            partial.rename(path)
        return np.load(path)

    def train(self, rows: Sequence[int], *, seed: int, save: Callable[..., None] | None = None) -> LlamaForCausalLM:
        """A model trained on these rows; ``save(step, model, optimizer)`` sees it after every step."""
        config = TRAINING.model_copy(update={"seed": seed})
        model = new_model(config, self.tokenizer)
        rate = config.learning_rate
        optimizer = Adafactor(model.parameters(), lr=rate, scale_parameter=False, relative_step=False)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate_factor(config, s, len(rows)))
        for step, batch in enumerate(batches([self._sentences[row] for row in rows], config), start=1):
            take_step(model, batch, optimizer)
            schedule.step()
            if save:
                save(step, model, optimizer)
        return model.eval()

    def checkpoints(self, directory: Path) -> list[Path]:
        """Checkpoints of the model of the whole corpus at a third, at two thirds and at the end of its training."""
        rows = range(len(self.corpus.documents))
        total = TRAINING.num_epochs * -(-len(rows) // TRAINING.batch_size)
        steps = {round(total * third / 3): directory / f"step-{third}-of-3" for third in (1, 2, 3)}

        def save(step: int, model: LlamaForCausalLM, optimizer: Adafactor) -> None:
            if step in steps:
                save_checkpoint(model, self.tokenizer, optimizer, steps[step])

        if not (steps[total] / "optimizer.pt").exists():
            self.train(rows, seed=0, save=save)
        return list(steps.values())


def random_halves(num_documents: int, *, num_subsets: int) -> ndarray:
    """[s n] which documents are in each half; the second half of the subsets are the complements of the first."""
    rng = np.random.default_rng(0)
    halves = np.zeros((num_subsets // 2, num_documents), dtype=bool)
    for half in halves:
        half[rng.permutation(num_documents)[: num_documents // 2]] = True
    return np.concatenate([halves, ~halves])


def subset_outputs(retraining: Retraining, halves: ndarray, *, num_seeds: int) -> ndarray:
    """[r s q] log p(answer) after training on each half with each seed."""
    outputs = []
    for seed in range(num_seeds):
        rows = [
            retraining.outputs(np.flatnonzero(half), seed=seed, name=f"half{number:03d}")
            for number, half in enumerate(halves)
        ]
        outputs.append(np.stack(rows))
    return np.stack(outputs)
