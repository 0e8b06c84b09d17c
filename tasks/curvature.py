"""R_train of every block, its spectrum, and the train-whitened norm of every document: Dask over the gradient store.

Each Dask task takes one block through all shards, so what it holds is one [d d] matrix and a few rows, whatever the
size of the corpus.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from dask import delayed
from numpy import ndarray
from upath import UPath

from storage.errors import InputError
from storage.gradients import GradientReader
from storage.layout import SPECTRUM, TRAIN_NORMS, autocorrelation_file
from storage.manifest import Artifact, Draft
from storage.matrices import read_arrays, write_arrays
from tasks.dask_compute import compute
from tasks.numerics import curvature
from tasks.stage import StageRequest, stage

ROWS_AT_ONCE = 1024
LARGEST_BLOCK_DIMS = 20_000  # R of such a block takes 3 GiB in float64
MATRIX = "R"


class IndexedShards(StageRequest):
    """The finished shards a stage reads, in corpus order."""

    shards: tuple[Artifact, ...]
    dask: str = "local"

    @property
    def block_dims(self) -> dict[str, int]:
        return self.shards[0].facts["block_dims"]

    @property
    def num_documents(self) -> int:
        return sum(shard.facts["num_documents"] for shard in self.shards)

    @property
    def shard_paths(self) -> list[UPath]:
        return [shard.path(self.index) for shard in self.shards]

    def inputs(self) -> dict[str, Any]:
        return {"shards": [shard.digest for shard in self.shards]}


class AutocorrelationRequest(IndexedShards):
    """R_train over all documents."""

    kind: ClassVar[str] = "autocorrelation"
    version: ClassVar[int] = 1

    @property
    def label(self) -> str:
        return f"R of {self.num_documents} documents"

    @property
    def is_feasible(self) -> bool:
        """Whether every block is small enough to have its R formed: whole gradients of a large model are not."""
        return max(self.block_dims.values()) <= LARGEST_BLOCK_DIMS


class SpectrumRequest(IndexedShards):
    """The eigenvalues of R_train."""

    kind: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 1

    autocorrelation: Artifact

    @property
    def label(self) -> str:
        return f"spectrum of R, {len(self.block_dims)} blocks"


class TrainNormsRequest(IndexedShards):
    """‖ψ‖² of every document: by damped R_train, or by the identity where nothing is whitened."""

    kind: ClassVar[str] = "train_norms"
    version: ClassVar[int] = 1

    autocorrelation: Artifact | None
    damping: float

    @property
    def label(self) -> str:
        return f"norms of {self.num_documents} documents at damping {self.damping:g}"

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "damping": None if self.autocorrelation is None else self.damping}


@stage
def write_autocorrelation(request: AutocorrelationRequest, draft: Draft) -> None:
    """R_train = ΦᵀΦ / n of every block, accumulated in float64."""
    parts = [
        delayed(_write_block_autocorrelation, pure=False)(
            request.shard_paths, block, request.num_documents, draft.path / autocorrelation_file(block)
        )
        for block in request.block_dims
    ]
    compute(parts, where=request.dask)
    draft.facts |= {"num_documents": request.num_documents, "block_dims": request.block_dims}


@stage
def write_spectrum(request: SpectrumRequest, draft: Draft) -> None:
    """The eigenvalues of every block's R_train, largest first."""
    directory = request.autocorrelation.path(request.index)
    blocks = list(request.block_dims)
    parts = [delayed(_spectrum, pure=False)(request.shard_paths, directory, block) for block in blocks]
    write_arrays(draft.path / SPECTRUM, dict(zip(blocks, compute(parts, where=request.dask), strict=True)))


@stage
def write_train_norms(request: TrainNormsRequest, draft: Draft) -> None:
    """‖C^-1 φ‖² of every document [n] in every block, in corpus order."""
    directory = request.autocorrelation and request.autocorrelation.path(request.index)
    blocks = list(request.block_dims)
    parts = [
        delayed(_block_norms, pure=False)(request.shard_paths, directory, block, request.damping) for block in blocks
    ]
    write_arrays(draft.path / TRAIN_NORMS, dict(zip(blocks, compute(parts, where=request.dask), strict=True)))


def block_factor(autocorrelation: UPath | None, block: str, damping: float) -> ndarray | None:
    """C of one block, or None where nothing is whitened.

    Raises:
        InputError: R is singular at this damping.
    """
    if autocorrelation is None:
        return None
    try:
        return curvature.damped_factor(read_autocorrelation(autocorrelation, block), damping=damping)
    except ValueError as error:
        raise InputError(f"block {block}: {error}") from error


def read_autocorrelation(directory: UPath, block: str) -> ndarray:
    return read_arrays(directory, autocorrelation_file(block))[MATRIX]


def read_block_arrays(artifact: Artifact, index: str, name: str) -> Mapping[str, ndarray]:
    return read_arrays(artifact.path(index), name)


def block_rows(shards: Sequence[UPath], block: str) -> Iterator[ndarray]:
    """The rows of a block of all shards, some at a time, in corpus order."""
    for shard in shards:
        for _, rows in GradientReader(shard).chunks(block, num_rows=ROWS_AT_ONCE):
            yield rows


def _write_block_autocorrelation(shards: Sequence[UPath], block: str, num_documents: int, target: UPath) -> None:
    total: Any = 0.0
    for rows in block_rows(shards, block):
        total = total + curvature.gram(rows)
    write_arrays(target, {MATRIX: total / num_documents})


def _spectrum(shards: Sequence[UPath], autocorrelation: UPath, block: str) -> ndarray:
    """Eigenvalues of R; with fewer documents n than dimensions d, those of the smaller ΦΦᵀ / n, which are the same."""
    R = read_autocorrelation(autocorrelation, block)
    num_documents = sum(GradientReader(shard).num_rows for shard in shards)
    if num_documents >= len(R):
        return curvature.spectrum(R)
    phi = np.concatenate(list(block_rows(shards, block))).astype(np.float64)
    values = curvature.spectrum(phi @ phi.T / num_documents)
    return np.concatenate([values, np.zeros(len(R) - num_documents)])


def _block_norms(shards: Sequence[UPath], autocorrelation: UPath | None, block: str, damping: float) -> ndarray:
    C = block_factor(autocorrelation, block, damping)
    return np.concatenate(
        [
            curvature.squared_norms(rows if C is None else curvature.whiten(C, rows))
            for rows in block_rows(shards, block)
        ]
    )
