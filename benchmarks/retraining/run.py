"""Claim: the scores say what retraining does. Ground truth is many small models, trained from scratch.

    LDS           Spearman correlation, over random halves of the corpus, of a half's summed scores with the answer's
                  log-probability after training on that half; mean over queries
    leave-k-out   remove a query's k best proponents, train again: how far does the answer's log-probability fall?

    python -m benchmarks.retraining.run --out DIR [--dense-encoder DIR] [--bergson PYTHON] [--removal-queries 12]

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
from benchmarks.retraining.lds import noise_ceiling, odd_share, seed_agreement
from benchmarks.retraining.models import NUM_MATRICES, Corpus, Retraining, build_corpus, random_halves, subset_outputs
from benchmarks.retraining.scores import Traced, bergson_scores, build_index, our_scores, write_files
from benchmarks.retraining.tables import (
    checkpoint_rows,
    interval,
    lds_rows,
    own_statements,
    part_rows,
    removal_rows,
)

METHODS = (
    "trackstar", "mixed", "train_only", "no_whitening", "no_unit_norm", "no_v", "trak", "grad_dot", "grad_cosine",
    "bm25", "hybrid", "random",
)  # fmt: skip
BY_CHECKPOINT = ("trackstar", "no_whitening", "no_v", "no_unit_norm", "grad_cosine", "grad_dot")
OWN_STATEMENTS = "a query's own statements, counted"
REMOVED = ("trackstar", "bm25")
SUMMED = ("trackstar", "grad_cosine")  # over the checkpoints, and removed too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subsets", type=int, default=60, help="Half of them are the complements of the others.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--projection-dim", type=int, default=32)
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1], help="The first is that of leave-k-out.")
    parser.add_argument("--influence-queries", type=int, default=8, help="It is solved for the first so many; 0: none.")
    parser.add_argument("--influence-damping", type=float, default=1.0)
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
    by_seed = subset_outputs(retraining, halves, num_seeds=arguments.seeds)
    truth = halves, by_seed.mean(axis=0)
    traced = write_files(retraining, arguments.out)
    directory = build_index(traced, projection_dim=arguments.projection_dim)
    yield from (provenance(_command(arguments)), "")
    yield from ground_truth_lines(corpus, by_seed, retraining)
    by_damping = {damping: all_scores(directory, corpus, damping, arguments) for damping in arguments.damping}
    for damping, scores in by_damping.items():
        scores |= bergson(traced, retraining, damping, arguments)
        yield from ("", f"## LDS at damping {damping:g}, k = {arguments.projection_dim}, the last checkpoint", "")
        yield from lds_rows({**scores, OWN_STATEMENTS: own_statements(corpus)}, *truth)
    headline, first = next(iter(by_damping.items()))
    yield from ("", f"## LDS by checkpoint, damping {headline:g}", "")
    by_checkpoint = checkpoint_scores(traced, retraining, headline, arguments)
    yield from checkpoint_rows(by_checkpoint, *truth)
    yield from ("", f"## LDS of parts of the scores, damping {headline:g}, the last checkpoint", "")
    yield from part_rows(first, corpus, *truth)
    if arguments.influence_queries:
        yield from influence_rows(directory, corpus, first, truth, arguments)
    if arguments.removal_queries:
        yield from ("", "## Ten best proponents removed, trained again", "")
        summed = {f"{name}, three checkpoints": sum(by_checkpoint[name]) for name in SUMMED}
        chosen = {name: first[name] for name in REMOVED} | summed | {OWN_STATEMENTS: own_statements(corpus)}
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
    return our_scores(directory, corpus, methods=methods, damping=damping, dense_encoder=arguments.dense_encoder)


def bergson(
    traced: Traced, retraining: Retraining, damping: float, arguments: argparse.Namespace
) -> dict[str, ndarray]:
    """Its TrackStar, λ where ours has it in proportion to its dimensions, and where it has it by default."""
    if not arguments.bergson:
        return {}
    return {
        f"bergson, k = {arguments.bergson_dim}, λ at component {component}": bergson_scores(
            traced, retraining, arguments.bergson, projection_dim=arguments.bergson_dim, damping=damping,
            downweighted=component,
        )
        for component in (round(NUM_MATRICES * arguments.bergson_dim**2 * 1000 / 65_536), 1000)
    }  # fmt: skip


def checkpoint_scores(
    traced: Traced, retraining: Retraining, damping: float, arguments: argparse.Namespace
) -> dict[str, list[ndarray]]:
    """Method to its scores at each checkpoint."""
    by_checkpoint: dict[str, list[ndarray]] = {}
    for earlier in traced.at_each_checkpoint():
        directory = build_index(earlier, projection_dim=arguments.projection_dim)
        scores = our_scores(directory, retraining.corpus, methods=BY_CHECKPOINT, damping=damping)
        for name, matrix in (scores | bergson(earlier, retraining, damping, arguments)).items():
            by_checkpoint.setdefault(name, []).append(matrix)
    return by_checkpoint


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
    solve = {"damping": damping, "dtype": "float32", "tolerance": 1e-2}
    settings = {"methods": ["influence"], "damping": arguments.damping[0], "influence": solve}
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
    return f"python -m benchmarks.retraining.run {' '.join(flags)}"


if __name__ == "__main__":
    main()
