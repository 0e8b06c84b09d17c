"""Claim: the scores say what retraining does. Ground truth is many small models, trained from scratch.

    LDS           Spearman correlation, over random halves of the corpus, of a half's summed scores with the answer's
                  log-probability after training on that half; mean over queries
    leave-k-out   remove a query's k best proponents, train again: how far does the answer's log-probability fall?

    python benchmarks/retraining.py --out DIR [--dense-encoder DIR] [--bergson PYTHON] [--removal-queries 12]

Every retraining is kept in DIR, so a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
import torch
from numpy import ndarray
from transformers import Adafactor, LlamaForCausalLM, PreTrainedTokenizerFast

from flows.compare import compare
from flows.config import CompareConfig, IndexConfig
from flows.index import index
from storage.queries import Query
from storage.results import PROPONENT
from tasks.demo_corpus import DemoCorpusConfig, Document, build_demo_corpus
from tasks.numerics.lds import linear_datamodelling_scores, noise_ceiling, seed_agreement
from tasks.numerics.metrics import bootstrap_interval
from tasks.tokens import tokenize_documents, tokenize_query
from tasks.training import (
    TrainingConfig,
    batches,
    completion_probabilities,
    learning_rate_factor,
    new_model,
    save_checkpoint,
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


METHODS = (
    "trackstar", "mixed", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_dot", "grad_cosine",
    "influence", "bm25", "hybrid", "random",
)  # fmt: skip


NUM_MATRICES = 7 * TRAINING.num_layers
REMOVED = ("trackstar", "grad_cosine", "influence", "bm25")


@dataclass(frozen=True)
class Traced:
    """The corpus, the queries and the checkpoints as files, for whoever scores them."""

    directory: Path
    checkpoints: list[Path]

    @property
    def corpus(self) -> Path:
        return self.directory / "corpus.jsonl"

    @property
    def queries(self) -> Path:
        return self.directory / "queries.jsonl"


def write_files(retraining: Retraining, directory: Path) -> Traced:
    traced = Traced(directory, retraining.checkpoints(directory / "checkpoints"))
    documents = [{"id": document.id, "text": document.text} for document in retraining.corpus.documents]
    traced.corpus.write_text("".join(json.dumps(document) + "\n" for document in documents))
    traced.queries.write_text(
        "".join(query.model_dump_json(exclude_defaults=True) + "\n" for query in retraining.corpus.queries)
    )
    return traced


def our_scores(
    traced: Traced, corpus: Corpus, *, methods: Sequence[str], projection_dim: int, damping: float, **settings: object
) -> dict[str, ndarray]:
    """[n q] of every method, through the flows that a user runs."""
    name = f"k{projection_dim}"
    index(
        IndexConfig.model_validate(
            {
                "checkpoint": str(traced.checkpoints[-1]),
                "index": str(traced.directory / f"index-{name}"),
                "corpus": {"paths": [str(traced.corpus)]},
                "gradient": {"projection_dim": projection_dim},
            }
        )
    )
    out = traced.directory / f"results-{name}-damping{damping:g}"
    compare(
        CompareConfig.model_validate(
            {
                "index": str(traced.directory / f"index-{name}"),
                "queries": str(traced.queries),
                "out": str(out),
                "methods": methods,
                "score": {"top_k": 0, "damping": damping},
                "tail_patch": {"num_proponents": 0},
                **settings,
            }
        )
    )
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
    queries = [tokenize_query(retraining.tokenizer, query) for query in retraining.corpus.queries]
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


def interval(values: ndarray) -> str:
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def lds_rows(scores: Mapping[str, ndarray], halves: ndarray, outputs: ndarray, *, reference: str) -> list[str]:
    """One row of Markdown a method: LDS, and its difference from the reference query by query."""
    values = {name: linear_datamodelling_scores(matrix, halves, outputs) for name, matrix in scores.items()}
    return [
        f"| {name} | {interval(found)} | {'' if name == reference else interval(found - values[reference])} |"
        for name, found in values.items()
    ]


def removal_rows(
    retraining: Retraining, scores: Mapping[str, ndarray], *, num_removed: int, num_queries: int, num_random: int
) -> list[str]:
    """One row a method: how far the log-probability of an answer falls without its best proponents, against chance.

    Asked are the answers that the model of the whole corpus knows best: the others have nowhere to fall. All models
    start from the same weights, so that what differs is the corpus, and the order of what is left of it.
    """
    everything = np.arange(len(retraining.corpus.documents))
    rng = np.random.default_rng(1)
    before = retraining.outputs(everything, seed=0, name="whole")
    known = np.argsort(-before, kind="stable")[:num_queries]
    removals = [rng.choice(len(everything), num_removed, replace=False) for _ in range(num_random)]
    random = [
        retraining.outputs(np.delete(everything, removed), seed=0, name=f"random{number}")
        for number, removed in enumerate(removals)
    ]
    by_chance = np.mean(random, axis=0)[known] - before[known]
    changes: dict[str, list[float]] = {method: [] for method in scores}
    for query in known:
        for method, matrix in scores.items():
            removed = np.argsort(-matrix[:, query], kind="stable")[:num_removed]
            name = f"without-{method}-{query:02d}-{num_removed}"
            after = retraining.outputs(np.delete(everything, removed), seed=0, name=name)
            changes[method].append(after[query] - before[query])
    rows = [f"| random, {num_random} draws | {interval(by_chance)} | |"]
    for method, values in changes.items():
        rows.append(f"| {method} | {interval(np.array(values))} | {interval(np.array(values) - by_chance)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--projection-dim", type=int, default=32)
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1])
    parser.add_argument("--without", nargs="+", choices=METHODS, default=[], help="Methods to leave out.")
    parser.add_argument("--dense-encoder", help="Directory of a local sentence encoder.")
    parser.add_argument("--bergson", help="The Python of an environment with bergson 2.5.1.")
    parser.add_argument("--bergson-dim", type=int, default=16, help="Its projection: it concatenates, ours pools.")
    parser.add_argument("--removal-queries", type=int, default=0, help="Queries of leave-k-out; 0: skip it.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = build_corpus()
    retraining = Retraining(corpus, arguments.out / "retrained")
    halves = random_halves(len(corpus.documents), num_subsets=arguments.subsets)
    by_seed = subset_outputs(retraining, halves, num_seeds=arguments.seeds)
    agreement = seed_agreement(by_seed)
    ceiling = noise_ceiling(agreement.mean(), num_seeds=arguments.seeds)
    print(f"{len(corpus.documents)} documents, {len(corpus.queries)} queries, {arguments.subsets} halves")
    print(f"agreement of two seeds {interval(agreement)}; ceiling {ceiling:.3f}\n")
    traced = write_files(retraining, arguments.out)
    methods = [name for name in METHODS if name not in arguments.without] + ["dense"] * bool(arguments.dense_encoder)
    for damping in arguments.damping:
        scores = our_scores(
            traced, corpus, methods=methods, projection_dim=arguments.projection_dim, damping=damping,
            dense_encoder=arguments.dense_encoder, influence={"damping": damping},
            also_checkpoints=[str(path) for path in traced.checkpoints[:-1]],
        )  # fmt: skip
        if arguments.bergson:
            num_dims = NUM_MATRICES * arguments.bergson_dim**2
            for downweighted in (round(num_dims * 1000 / 65_536), 1000):
                settings = {"projection_dim": arguments.bergson_dim, "damping": damping, "downweighted": downweighted}
                scores[f"bergson, k = {arguments.bergson_dim}, λ at {downweighted}"] = bergson_scores(
                    traced, retraining, arguments.bergson, **settings
                )
        print(f"\ndamping {damping:g}, k = {arguments.projection_dim}\n")
        print("| method | LDS | minus trackstar |\n|---|---|---|")
        print("\n".join(lds_rows(scores, halves, by_seed.mean(axis=0), reference="trackstar")), flush=True)
    if arguments.removal_queries:
        chosen = {name: scores[name] for name in REMOVED if name in scores}
        print("\n| removed | change of log p | minus random removal |\n|---|---|---|")
        settings = {"num_removed": 10, "num_queries": arguments.removal_queries, "num_random": 3}
        print("\n".join(removal_rows(retraining, chosen, **settings)))


if __name__ == "__main__":
    main()
