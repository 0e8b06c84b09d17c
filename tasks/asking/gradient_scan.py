"""One pass over the store for a few queries: their best documents so far at any time, and how all scores are spread."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from os import cpu_count
from typing import Any

import numpy as np
from numpy import ndarray
from threadpoolctl import threadpool_limits
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.corpus_side import CorpusSide
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.numerics import mixing, ranking
from trackstar.tasks.numerics.ranking import Ranked
from trackstar.tasks.numerics.scores import QueryBasis, query_basis
from trackstar.tasks.scoring.score_pass import Pass, ScoreConfig, choose_mixing_weight, row_influences
from trackstar.tasks.scoring.whitening import TrainWhitening

THREADS = min(4, cpu_count() or 1)
SAMPLED_SCORES = 1 << 16

Scored = tuple[ndarray, ndarray]  # positions [n] and scores [q n]


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Reading:
    """How queries read the corpus: everything of a pass but the corpus itself.

    Attributes:
        bases: Of each block.
        mixing_weight: λ.
        config: How gradients become scores.
    """

    bases: Mapping[str, QueryBasis]
    mixing_weight: float
    config: ScoreConfig

    @property
    def is_whitened(self) -> bool:
        return self.config.whitening != "none"


@dataclass
class Found:
    """What a pass has found so far.

    Attributes:
        ranked: PROPONENT and OPPONENT to the best of the leading queries.
        sums: Number, sum and sum of squares of the first query's scores [3].
        sample: Some of the first query's scores, all of them in a corpus of no more than ``SAMPLED_SCORES``.
        best: The highest score of every query [q].
    """

    ranked: dict[str, Ranked] = field(default_factory=dict)
    sums: ndarray = field(default_factory=lambda: np.zeros(3))
    sample: list[ndarray] = field(default_factory=list)
    best: ndarray | float = -np.inf


def read_queries_by(side: CorpusSide, vectors: Mapping[str, ndarray], config: ScoreConfig) -> Reading:
    """How queries with these vectors [q d] read the corpus.

    Raises:
        InputError: The settings ask for an R that the index does not have.
    """
    config.check()
    if config.whitening != "none" and not side.has_curvature:
        raise InputError("the index has no R_train to whiten by; use the method no_whitening")
    is_whitened = config.whitening != "none"
    vectors = {block: vectors[block] for block in side.block_dims}  # as the columns of norms are ordered
    bases = {block: query_basis(side.factor(block) if is_whitened else None, rows) for block, rows in vectors.items()}
    spectra = {}
    if config.whitening == "mixed" and config.mixing_weight == "auto":
        eval_values = {block: mixing.eval_spectrum([rows]) for block, rows in vectors.items()}
        spectra = {"R_train": side.spectrum(), "R_eval": eval_values}
    num_dims = sum(side.block_dims.values())
    return Reading(bases, choose_mixing_weight(config, spectra, num_dims=num_dims).value, config)


def scan(
    side: CorpusSide,
    candidates: Candidates,
    reading: Reading,
    *,
    num_ranked: int,
    advance: Callable[[int, Found], None],
) -> Found:
    """Score every document; the first ``num_ranked`` queries get their documents ranked.

    Args:
        advance: Told how many documents are done and what was found, after each part; what it raises ends the pass.
    """
    found, stride = Found(), max(1, candidates.num_positions // SAMPLED_SCORES)
    common = Pass(TrainWhitening(), (reading.mixing_weight,), reading.config)

    def score_shard(shard: tuple[UPath, int]) -> list[Scored]:
        path, start = shard
        norms = side.norms(path, whitened=reading.is_whitened)
        parts = row_influences(side.rows(path), norms, common, reading.bases, candidates.withdrawn.get(path))
        return [(start + rows, influence.T) for rows, (influence,) in parts]

    with (
        _one_blas_thread,
        ThreadPoolExecutor(THREADS) as pool,
        closing(_in_order(pool, score_shard, candidates.shards())) as shards,
    ):
        for positions, scores in chain.from_iterable(shards):
            _add(found, positions, scores, stride=stride, num_ranked=num_ranked, top_k=reading.config.top_k)
            advance(len(positions), found)
    return found


def _add(found: Found, positions: ndarray, scores: ndarray, *, stride: int, num_ranked: int, top_k: int) -> None:
    for kind in (PROPONENT, OPPONENT):
        end = {"top_k": top_k or None, "largest": kind == PROPONENT}
        best = ranking.best(scores[:num_ranked], positions, **end)
        found.ranked[kind] = ranking.merge([found.ranked[kind], best], **end) if kind in found.ranked else best
    first = scores[0]
    found.sums += (len(first), first.sum(), first @ first)
    found.sample.append(first[positions % stride == 0])
    found.best = np.maximum(found.best, scores.max(axis=1, initial=-np.inf))


def _in_order(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """The results in order, a few of them ahead; none is started after the reader has gone."""
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class _OneBlasThread:
    """Holds BLAS at one thread while any pass runs: each of a pass's threads uses it."""

    def __init__(self) -> None:
        self._lock, self._num_passes = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_passes:
                self._limits = threadpool_limits(1, user_api="blas")
            self._num_passes += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_passes -= 1
            if not self._num_passes:
                self._limits.restore_original_limits()


_one_blas_thread = _OneBlasThread()
