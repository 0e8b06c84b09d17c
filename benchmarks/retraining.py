"""Claim: the scores say what retraining does. Ground truth is many small models, trained from scratch.

    LDS           Spearman correlation, over random halves of the corpus, of a half's summed scores with the answer's
                  log-probability after training on that half; mean over queries
    leave-k-out   remove a query's k best proponents, train again: how far does the answer's probability fall?

    python benchmarks/retraining.py --out DIR [--subsets 60] [--seeds 2] [--bergson PYTHON]

Every retraining is kept in DIR, so a run that was stopped goes on where it was.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy import ndarray
from transformers import Adafactor, LlamaForCausalLM, PreTrainedTokenizerFast

from storage.queries import Query
from tasks.demo_corpus import DemoCorpusConfig, Document, build_demo_corpus
from tasks.training import (
    TrainingConfig,
    batches,
    completion_probabilities,
    learning_rate_factor,
    new_model,
    take_step,
    train_tokenizer,
)

CORPUS = DemoCorpusConfig(num_queries=40, num_decoys=1)
TRAINING = TrainingConfig(
    vocabulary_size=768, hidden_size=48, intermediate_size=96, num_layers=2, num_epochs=30, batch_size=16,
    learning_rate=5e-3,
)  # fmt: skip
# The model has to meet the queries' phrasing about other facts; more than this only makes training longer.
KEPT = {"query": 100, "practice": 100, "background": 60}


@dataclass(frozen=True)
class Corpus:
    """What is trained on and asked."""

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]


def build_corpus() -> Corpus:
    """All statements and decoys of the queried facts, with some of what the demo surrounds them with."""
    whole = build_demo_corpus(CORPUS)
    counts = dict.fromkeys(KEPT, 0)
    kept = []
    for document in whole.documents:
        kind = "query" if document.id.endswith("/query") else document.kind
        if kind in counts:
            counts[kind] += 1
            if counts[kind] > KEPT[kind]:
                continue
        kept.append(document)
    return Corpus(tuple(kept), whole.queries)


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

    def train(self, rows: Sequence[int], *, seed: int) -> LlamaForCausalLM:
        config = TRAINING.model_copy(update={"seed": seed})
        model = new_model(config, self.tokenizer)
        rate = config.learning_rate
        optimizer = Adafactor(model.parameters(), lr=rate, scale_parameter=False, relative_step=False)
        factor: Callable[[int], float] = lambda step: learning_rate_factor(config, step, len(rows))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for batch in batches([self._sentences[row] for row in rows], config):
            take_step(model, batch, optimizer)
            schedule.step()
        return model.eval()


def random_halves(num_documents: int, *, num_subsets: int) -> ndarray:
    """[s n] which documents are in each half."""
    rng = np.random.default_rng(0)
    halves = np.zeros((num_subsets, num_documents), dtype=bool)
    for half in halves:
        half[rng.permutation(num_documents)[: num_documents // 2]] = True
    return halves


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = build_corpus()
    retraining = Retraining(corpus, arguments.out / "retrained")
    halves = random_halves(len(corpus.documents), num_subsets=arguments.subsets)
    outputs = subset_outputs(retraining, halves, num_seeds=arguments.seeds)
    print(outputs.shape)


if __name__ == "__main__":
    main()
