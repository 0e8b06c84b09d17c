"""Tables of the retraining benchmark, a row of Markdown at a time: scores held against what retraining did."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy import ndarray

from benchmarks.retraining.lds import linear_datamodelling_scores
from benchmarks.retraining.models import Corpus, Retraining
from trackstar.tasks.numerics.metrics import bootstrap_interval


def interval(values: ndarray) -> str:
    """The mean with its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})".replace("-", "−")


def own_statements(corpus: Corpus) -> ndarray:
    """[n q] 1 where a document states the query's fact: what counting could predict."""
    return np.array(
        [[float(document.id in query.relevant_ids) for query in corpus.queries] for document in corpus.documents]
    )


def lds_rows(scores: Mapping[str, ndarray], halves: ndarray, outputs: ndarray) -> Iterator[str]:
    """One row a method: LDS, and its difference from the first method's query by query."""
    values = {name: linear_datamodelling_scores(matrix, halves, outputs) for name, matrix in scores.items()}
    reference = next(iter(values))
    yield from (f"| method | LDS | minus {reference} |", "|---|---|---|")
    for name, found in values.items():
        yield f"| {name} | {interval(found)} | {'' if name == reference else interval(found - values[reference])} |"


def checkpoint_rows(scores: Mapping[str, Sequence[ndarray]], halves: ndarray, outputs: ndarray) -> Iterator[str]:
    """One row a method: LDS at each checkpoint and of the sum over them, and that minus the first method's."""
    reference, totals = next(iter(scores)), {}
    yield f"| method | a third of training | two thirds | the end | summed over the three | minus {reference} |"
    yield "|---|---|---|---|---|---|"
    for name, matrices in scores.items():
        values = [linear_datamodelling_scores(matrix, halves, outputs) for matrix in (*matrices, sum(matrices))]
        totals[name] = values[-1]
        difference = "" if name == reference else interval(totals[name] - totals[reference])
        yield f"| {name} | {' | '.join(map(interval, values))} | {difference} |"


def part_rows(scores: Mapping[str, ndarray], corpus: Corpus, halves: ndarray, outputs: ndarray) -> Iterator[str]:
    """One row a method: LDS of parts of its scores, the rest taken as 0, and how much of their spread is where.

    A method that knows what states a fact can still be drowned by what it says of all other documents.
    """
    states = own_statements(corpus)
    yield "| method | all | ten best | own statements | all others | share of the variance in own statements |"
    yield "|---|---|---|---|---|---|"
    for name, matrix in scores.items():
        ranks = np.argsort(np.argsort(-matrix, axis=0, kind="stable"), axis=0)
        parts = (matrix, matrix * (ranks < 10), matrix * states, matrix * (1 - states))
        cells = [f"{linear_datamodelling_scores(part, halves, outputs).mean():.3f}" for part in parts]
        squares = (matrix - matrix.mean(axis=0)) ** 2
        share = np.mean((squares * states).sum(axis=0) / squares.sum(axis=0))
        yield f"| {name} | {' | '.join(cells).replace('-', '−')} | {share:.0%} |"


def removal_rows(
    retraining: Retraining, scores: Mapping[str, ndarray], *, num_removed: int, num_queries: int, num_random: int
) -> Iterator[str]:
    """One row a method: how far the log-probability of an answer falls without its best proponents, against chance.

    Asked are the answers that the model of the whole corpus knows best: the others have nowhere to fall. All models
    start from the same weights, so that what differs is the corpus, and the order of what is left of it.
    """
    everything = np.arange(len(retraining.corpus.documents))
    rng = np.random.default_rng(1)
    before = retraining.outputs(everything, seed=0, name="whole")
    known = np.argsort(-before, kind="stable")[:num_queries]
    states = own_statements(retraining.corpus)

    def change_without(removed: ndarray) -> ndarray:
        name = f"without-{hashlib.sha256(np.sort(removed).tobytes()).hexdigest()[:16]}"
        return retraining.outputs(np.delete(everything, removed), seed=0, name=name) - before

    draws = [rng.choice(len(everything), num_removed, replace=False) for _ in range(num_random)]
    by_chance = np.mean([change_without(draw) for draw in draws], axis=0)[known]
    best = {name: np.argsort(-matrix, axis=0, kind="stable")[:num_removed] for name, matrix in scores.items()}
    changes = {name: np.array([change_without(rows[:, q])[q] for q in known]) for name, rows in best.items()}
    reference = next(iter(scores))
    yield f"| removed | of them state the fact | change of log p | minus random removal | minus {reference} |"
    yield "|---|---|---|---|---|"
    found = np.mean([states[draw][:, known].sum(axis=0) for draw in draws])
    yield f"| random, {num_random} draws | {found:.1f} | {interval(by_chance)} | | |"
    for name, values in changes.items():
        found = np.mean([states[best[name][:, q], q].sum() for q in known])
        difference = "" if name == reference else interval(values - changes[reference])
        yield f"| {name} | {found:.1f} | {interval(values)} | {interval(values - by_chance)} | {difference} |"
