"""R_train of every block: a sum over the gradient store that Dask computes, and that grows and shrinks with it.

Each Dask task takes one block through all shards, so what it holds is one [d d] matrix and a few rows, whatever the
size of the corpus. Of long runs of shards the sum is kept (``GramRequest``): appending documents then costs their own
products and those of the last, open run; withdrawing some costs theirs, which are subtracted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import GRAM, MATRICES
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.triangles import create_triangles, read_lower, symmetric, write_lower
from trackstar.tasks.index.settings import CurvatureConfig
from trackstar.tasks.index.withdrawals import read_tombstones, withdrawn_rows
from trackstar.tasks.numerics import curvature
from trackstar.tasks.runtime.dask import compute, part
from trackstar.tasks.runtime.stage import StageRequest, gather, stage

LARGEST_BLOCK_DIMS = 20_000  # R of such a block takes 3 GiB in float64

ShardRows = tuple[UPath, ndarray | None]  # a shard and which of its rows, ascending; None: all


class IndexedShards(StageRequest):
    """The finished shards a stage reads, in corpus order, and which of their documents were withdrawn."""

    shards: tuple[Artifact, ...]
    tombstones: Artifact | None = None
    dask: str = "local"

    @property
    def block_dims(self) -> dict[str, int]:
        return self.shards[0].facts["block_dims"]

    @property
    def num_documents(self) -> int:
        """Rows of all shards, withdrawn ones included."""
        return sum(shard.facts["num_documents"] for shard in self.shards)

    @property
    def shard_paths(self) -> list[UPath]:
        return [shard.path(self.index) for shard in self.shards]

    def inputs(self) -> dict[str, Any]:
        shards = {"shards": [shard.digest for shard in self.shards]}
        return shards if self.tombstones is None else {**shards, "tombstones": self.tombstones.digest}

    def withdrawn(self) -> dict[UPath, ndarray]:
        """The withdrawn rows of each shard that has any."""
        return withdrawn_rows(self.shard_paths, self.tombstones, self.index)

    def withdrawn_ids(self) -> set[str]:
        return set(read_tombstones(self.tombstones, self.index)["id"])


class Terms(NamedTuple):
    """What R_train is made of: sums that are there, rows to add, rows to subtract, and what to divide by."""

    grams: Sequence[UPath]
    added: Sequence[ShardRows]
    subtracted: Sequence[ShardRows]
    num_documents: int


class GramRequest(IndexedShards):
    """ΦᵀΦ over a run of shards, withdrawn rows included: they are subtracted where it is used."""

    kind: ClassVar[str] = "grams"
    version: ClassVar[int] = 1

    @property
    def label(self) -> str:
        return f"Gram matrices of {self.num_documents} documents"


class AutocorrelationRequest(IndexedShards):
    """R_train over all documents, or a sample of them.

    Attributes:
        sample: Size and seed of the sample, or None for all.
        grams: Sums that are there already, of runs of these shards, and which shards they are of.
    """

    kind: ClassVar[str] = "autocorrelation"
    version: ClassVar[int] = 2

    sample: tuple[int, int] | None = None
    grams: tuple[tuple[Artifact, tuple[Artifact, ...]], ...] = ()

    @property
    def label(self) -> str:
        return f"R of {self.sample[0] if self.sample else self.num_documents} documents"

    @property
    def is_feasible(self) -> bool:
        """Whether every block is small enough to have its R formed: whole gradients of a large model are not."""
        return max(self.block_dims.values()) <= LARGEST_BLOCK_DIMS

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), **({"sample": self.sample} if self.sample else {})}


@stage
def write_gram(request: GramRequest, draft: Draft) -> None:
    """ΦᵀΦ of every block, accumulated in float64."""
    create_triangles(draft.path / GRAM)
    rows = [(path, None) for path in request.shard_paths]
    parts = [
        part(_write_block_gram, rows, block, dims, draft.path / GRAM) for block, dims in request.block_dims.items()
    ]
    compute(parts, where=request.dask)
    draft.facts |= {"num_documents": request.num_documents}


@stage
def write_autocorrelation(request: AutocorrelationRequest, draft: Draft) -> None:
    """R_train = ΦᵀΦ / n of every block, accumulated in float64."""
    create_triangles(draft.path / MATRICES)
    summed = {shard.path(request.index) for _, shards in request.grams for shard in shards}
    withdrawn = request.withdrawn()
    used = used_rows(request, withdrawn, sample=request.sample)
    num_used = sum(_count(rows) for rows in used)
    if not num_used:
        raise InputError(f"every document of {request.index} was withdrawn, so there is no R_train; index others")
    grams = [gram.path(request.index) for gram, _ in request.grams]
    added = [rows for rows in used if rows[0] not in summed]
    subtracted = [(path, rows) for path, rows in withdrawn.items() if path in summed]
    parts = [
        part(
            _write_block_autocorrelation, Terms(grams, added, subtracted, num_used), block, dims, draft.path / MATRICES
        )
        for block, dims in request.block_dims.items()
    ]
    compute(parts, where=request.dask)
    draft.facts |= {
        "num_documents": num_used,
        "num_withdrawn": sum(map(len, withdrawn.values())),
        "sample": request.sample,
        "block_dims": request.block_dims,
    }


def reduce_curvature(
    config: CurvatureConfig, *, index: str, shards: Sequence[Artifact], tombstones: Artifact | None, dask: str
) -> tuple[Artifact | None, tuple[Artifact, ...]]:
    """R_train, or None where none is wanted or blocks are too large, and the sums that are kept for the next time."""
    if config.autocorrelation == "off":
        return None, ()
    common = {"index": index, "dask": dask}
    sample = (config.sample, config.seed) if config.sample is not None else None
    whole = AutocorrelationRequest(shards=tuple(shards), tombstones=tombstones, sample=sample, **common)
    if not whole.is_feasible:
        return None, ()
    groups = closed_groups(shards, mean_size=config.group_shards) if sample is None else []
    grams = gather(write_gram.map([GramRequest(shards=group, **common) for group in groups]))
    pairs = tuple(zip(grams, groups, strict=True))
    return write_autocorrelation(whole.model_copy(update={"grams": pairs})), tuple(grams)


def closed_groups(shards: Sequence[Artifact], *, mean_size: int) -> list[tuple[Artifact, ...]]:
    """Runs of shards that no longer grow; what comes after the last of them is left out.

    A run ends with a shard whose digest is a multiple of ``mean_size``: content alone decides, so that a shard that is
    changed, added or removed anywhere in the corpus leaves all runs but its own as they were.
    """
    groups, run = [], []
    for shard in shards:
        if not shard.facts["num_documents"]:
            continue
        run.append(shard)
        if int(shard.digest[:16], 16) % mean_size == 0:
            groups.append(tuple(run))
            run = []
    return groups


def used_rows(
    request: IndexedShards, withdrawn: Mapping[UPath, ndarray], *, sample: Sequence[int] | None
) -> list[ShardRows]:
    """The rows R_train is taken from: what is not withdrawn, or a random sample of it; shards without any left out."""
    counts = {shard.path(request.index): shard.facts["num_documents"] for shard in request.shards}
    live: list[ShardRows] = [
        (path, np.delete(np.arange(count), withdrawn[path]) if path in withdrawn else None)
        for path, count in counts.items()
    ]
    if sample is None:
        return [(path, rows) for path, rows in live if (counts[path] if rows is None else len(rows))]
    return _sampled([(path, np.arange(counts[path]) if rows is None else rows) for path, rows in live], *sample)


def block_factor(autocorrelation: UPath | None, block: str, damping: float) -> ndarray | None:
    """C of one block, or None where nothing is whitened.

    Raises:
        InputError: R is singular at this damping.
    """
    if autocorrelation is None:
        return None
    try:
        return curvature.damped_factor(read_lower(autocorrelation, MATRICES, block), damping=damping)
    except ValueError as error:
        raise InputError(f"block {block}: {error}") from error


def read_autocorrelation(directory: UPath, block: str) -> ndarray:
    """R of one block, both triangles."""
    return symmetric(read_lower(directory, MATRICES, block))


def block_rows(shards: Sequence[ShardRows], block: str) -> Iterator[ndarray]:
    """Rows of a block of some shards, some at a time, in corpus order; windows without a wanted row are not read."""
    for path, wanted in shards:
        reader = GradientReader(path)
        for start, stop in reader.windows():
            if wanted is None:
                yield reader.rows(block, start, stop)
            elif len(chosen := wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]):
                yield reader.rows(block, start, stop)[chosen - start]


def _sampled(live: Sequence[tuple[UPath, ndarray]], size: int, seed: int) -> list[ShardRows]:
    ends = np.cumsum([len(rows) for _, rows in live])
    if size >= ends[-1]:
        return [(path, rows) for path, rows in live if len(rows)]
    positions = np.sort(np.random.default_rng(seed).choice(ends[-1], size, replace=False))
    parts = np.split(positions, np.searchsorted(positions, ends[:-1]))
    starts = [0, *ends[:-1]]
    chosen = [
        (path, rows[part - start]) for (path, rows), part, start in zip(live, parts, starts, strict=True) if len(part)
    ]
    return chosen


def _count(rows: ShardRows) -> int:
    return GradientReader(rows[0]).num_rows if rows[1] is None else len(rows[1])


def _write_block_gram(shards: Sequence[ShardRows], block: str, num_dims: int, target: UPath) -> None:
    total = curvature.empty_gram(num_dims)
    for rows in block_rows(shards, block):
        total = curvature.add_gram(total, rows)
    write_lower(target, block, total)


def _write_block_autocorrelation(terms: Terms, block: str, num_dims: int, target: UPath) -> None:
    total = curvature.empty_gram(num_dims)
    for gram in terms.grams:
        total = read_lower(gram, GRAM, block, out=total)
    for shards, sign in ((terms.added, 1.0), (terms.subtracted, -1.0)):
        for rows in block_rows(shards, block):
            total = curvature.add_gram(total, rows, sign=sign)
    total /= terms.num_documents
    write_lower(target, block, total)
