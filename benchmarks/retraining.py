"""Claim: the scores say what retraining does. Ground truth is many small models, trained from scratch.

    LDS           Spearman correlation, over random halves of the corpus, of a half's summed scores with the answer's
                  log-probability after training on that half; mean over queries
    leave-k-out   remove a query's k best proponents, train again: how far does the answer's log-probability fall?

    python -m benchmarks.retraining --out DIR [--dense-encoder DIR] [--bergson PYTHON] [--removal-queries 12]

Every retraining is kept in DIR, so a run that was stopped goes on where it was.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy import ndarray

from benchmarks.page import provenance, publish
from benchmarks.retrained_models import NUM_MATRICES, Corpus, Retraining, build_corpus, random_halves, subset_outputs
from benchmarks.retraining_scores import Traced, bergson_scores, build_index, our_scores, write_files
from tasks.numerics.lds import linear_datamodelling_scores, noise_ceiling, odd_share, seed_agreement
from tasks.numerics.metrics import bootstrap_interval

METHODS = (
    "trackstar", "mixed", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_dot", "grad_cosine",
    "bm25", "hybrid", "random",
)  # fmt: skip
OWN_STATEMENTS = "a query's own statements, counted"
REMOVED = ("trackstar", "grad_cosine", "bm25", OWN_STATEMENTS)


def interval(values: ndarray) -> str:
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def lds_rows(scores: Mapping[str, ndarray], halves: ndarray, outputs: ndarray) -> Iterator[str]:
    """One row of Markdown a method: LDS, and its difference from the first method's query by query."""
    values = {name: linear_datamodelling_scores(matrix, halves, outputs) for name, matrix in scores.items()}
    reference = next(iter(values))
    yield from (f"| method | LDS | minus {reference} |", "|---|---|---|")
    for name, found in values.items():
        yield f"| {name} | {interval(found)} | {'' if name == reference else interval(found - values[reference])} |"


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
        yield f"| {name} | {' | '.join(cells)} | {share:.0%} |"


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

    def without(removed: ndarray, name: str) -> ndarray:
        return retraining.outputs(np.delete(everything, removed), seed=0, name=name) - before

    draws = [rng.choice(len(everything), num_removed, replace=False) for _ in range(num_random)]
    by_chance = np.mean([without(removed, f"random{number}") for number, removed in enumerate(draws)], axis=0)[known]
    yield from ("| removed | of them state the fact | change of log p | minus random removal |", "|---|---|---|---|")
    found = np.mean([states[draw][:, known].sum(0) for draw in draws])
    yield f"| random, {num_random} draws | {found:.1f} | {interval(by_chance)} | |"
    for method, matrix in scores.items():
        best = np.argsort(-matrix, axis=0, kind="stable")[:num_removed]
        name = f"without-{_slug(method)}"
        changes = np.array([without(best[:, q], f"{name}-{q:02d}-{num_removed}")[q] for q in known])
        found = np.mean([states[best[:, q], q].sum() for q in known])
        yield f"| {method} | {found:.1f} | {interval(changes)} | {interval(changes - by_chance)} |"


def _slug(method: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in method).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subsets", type=int, default=60, help="Half of them are the complements of the others.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--projection-dim", type=int, default=32)
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1], help="The first is that of leave-k-out.")
    parser.add_argument("--influence-queries", type=int, default=8, help="It is solved for the first so many; 0: none.")
    parser.add_argument("--influence-damping", type=float, default=0.1)
    parser.add_argument("--dense-encoder", help="Directory of a local sentence encoder.")
    parser.add_argument("--bergson", help="The Python of an environment with bergson 2.5.1.")
    parser.add_argument("--bergson-dim", type=int, default=16, help="Its projection: it concatenates, ours pools.")
    parser.add_argument("--removal-queries", type=int, default=0, help="Queries of leave-k-out; 0: skip it.")
    parser.add_argument("--results", type=Path, help="A file for the page, which is printed too.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    publish("\n".join(page(arguments)) + "\n", arguments.results)


def page(arguments: argparse.Namespace) -> Iterator[str]:
    """What retraining says, as Markdown."""
    corpus = build_corpus()
    retraining = Retraining(corpus, arguments.out / "retrained")
    halves = random_halves(len(corpus.documents), num_subsets=arguments.subsets)
    outputs = subset_outputs(retraining, halves, num_seeds=arguments.seeds)
    traced = write_files(retraining, arguments.out)
    directory = build_index(traced, projection_dim=arguments.projection_dim)
    yield from ("# What retraining says", "", provenance(_command(arguments)), "")
    yield from ground_truth_lines(corpus, outputs, retraining)
    by_damping = {damping: all_scores(directory, corpus, damping, arguments) for damping in arguments.damping}
    for damping, scores in by_damping.items():
        scores |= bergson(traced, retraining, damping, arguments)
        yield from ("", f"## LDS at damping {damping:g}, k = {arguments.projection_dim}", "")
        yield from lds_rows({**scores, OWN_STATEMENTS: own_statements(corpus)}, halves, outputs.mean(axis=0))
    first = by_damping[arguments.damping[0]]
    yield from ("", f"## LDS of parts of the scores, damping {arguments.damping[0]:g}", "")
    yield from part_rows(first, corpus, halves, outputs.mean(axis=0))
    if arguments.influence_queries:
        yield from influence_rows(directory, corpus, first, (halves, outputs.mean(axis=0)), arguments)
    if arguments.removal_queries:
        yield from ("", "## Ten best proponents removed, trained again", "")
        chosen = {name: {**first, OWN_STATEMENTS: own_statements(corpus)}[name] for name in REMOVED}
        settings = {"num_removed": 10, "num_queries": arguments.removal_queries, "num_random": 3}
        yield from removal_rows(retraining, chosen, **settings)


def ground_truth_lines(corpus: Corpus, outputs: ndarray, retraining: Retraining) -> Iterator[str]:
    """How much there is to be predicted: what of it repeats, and what of that a sum can say."""
    num_seeds, num_subsets, num_queries = outputs.shape
    whole = retraining.outputs(range(len(corpus.documents)), seed=0, name="whole")
    agreement = seed_agreement(outputs)
    half = num_subsets // 2
    ceiling = noise_ceiling(agreement.mean(), num_seeds=num_seeds)
    yield (
        f"{len(corpus.documents):,} sentences, {num_queries} queries, {num_subsets} random halves with their "
        f"complements among them, {num_seeds} seeds. Mean probability of an answer {np.exp(whole).mean():.2f} after "
        f"the whole corpus, {np.exp(outputs).mean():.2f} after a half. Two seeds agree to {interval(agreement)}, so "
        f"that a perfect predictor reaches about {ceiling:.2f}; of what repeats from seed to seed, sums over members "
        f"can explain {odd_share(outputs[:, :half], outputs[:, half:]):.0%} at most."
    )


def all_scores(directory: Path, corpus: Corpus, damping: float, arguments: argparse.Namespace) -> dict[str, ndarray]:
    """Every method that ranks for all queries at once."""
    methods = [*METHODS, *(["dense"] if arguments.dense_encoder else [])]
    checkpoints = sorted((arguments.out / "checkpoints").iterdir())[:-1]
    return our_scores(
        directory, corpus, methods=methods, damping=damping, dense_encoder=arguments.dense_encoder,
        also_checkpoints=[str(path) for path in checkpoints],
    )  # fmt: skip


def bergson(
    traced: Traced, retraining: Retraining, damping: float, arguments: argparse.Namespace
) -> dict[str, ndarray]:
    """Its TrackStar, λ where ours has it in proportion to its dimensions, and where it has it by default."""
    if not arguments.bergson:
        return {}
    num_dims = NUM_MATRICES * arguments.bergson_dim**2
    common = {"projection_dim": arguments.bergson_dim, "damping": damping}
    return {
        f"bergson, k = {arguments.bergson_dim}, λ at component {component}": bergson_scores(
            traced, retraining, arguments.bergson, downweighted=component, **common
        )
        for component in (round(num_dims * 1000 / 65_536), 1000)
    }


def influence_rows(
    directory: Path,
    corpus: Corpus,
    others: Mapping[str, ndarray],
    truth: tuple[ndarray, ndarray],
    arguments: argparse.Namespace,
) -> Iterator[str]:
    """Influence functions beside the others on the queries they were solved for."""
    count, damping = arguments.influence_queries, arguments.influence_damping
    few = replace(corpus, queries=corpus.queries[:count])
    settings = {"methods": ["influence"], "damping": arguments.damping[0], "influence": {"damping": damping}}
    scores = {name: matrix[:, :count] for name, matrix in others.items()} | our_scores(directory, few, **settings)
    halves, outputs = truth
    yield from ("", f"## LDS of influence functions, damping {damping:g}: the first {count} queries", "")
    yield from lds_rows(scores, halves, outputs[:, :count])


def _command(arguments: argparse.Namespace) -> str:
    """As it was given, but for the names of places."""
    places = {"out": "DIR", "dense_encoder": "DIR", "bergson": "PYTHON"}
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "results"}
    values = {name: value if isinstance(value, list) else [places.get(name, value)] for name, value in given.items()}
    flags = (f"--{name.replace('_', '-')} {' '.join(map(str, of_flag))}" for name, of_flag in values.items())
    return f"python -m benchmarks.retraining {' '.join(flags)}"


def own_statements(corpus: Corpus) -> ndarray:
    """[n q] 1 where a document states the query's fact: what counting could predict."""
    return np.array(
        [[float(document.id in query.relevant_ids) for query in corpus.queries] for document in corpus.documents]
    )


if __name__ == "__main__":
    main()
