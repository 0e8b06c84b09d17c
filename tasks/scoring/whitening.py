"""What whitening by damped R_train takes, each measured once: its factor, its spectrum, and every document's norm.

A new query set then costs one pass over the store; a new damping costs factors and norms, and no gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import FACTORS, MATRICES, SPECTRUM, artifact_path, norms_file
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays, write_arrays
from trackstar.storage.triangles import create_triangles, read_lower, write_lower
from trackstar.tasks.index.curvature import IndexedShards, ShardRows, block_factor, block_rows, used_rows
from trackstar.tasks.index.norms import read_document_norms
from trackstar.tasks.numerics import curvature
from trackstar.tasks.runtime.dask import compute, part
from trackstar.tasks.runtime.stage import StageRequest, stage

SHARDS_AT_ONCE = 8  # that one read of a factor serves
TRAIN_NORMS, PLAIN_NORMS = "train", "plain"  # ‖ψ‖² and ‖φ‖², both [documents blocks]


class FactorRequest(StageRequest):
    """C of damped R_train: C Cᵀ = R_train + damping · mean_eigenvalue(R_train) · I."""

    kind: ClassVar[str] = "factors"
    version: ClassVar[int] = 1

    autocorrelation: Artifact
    damping: float
    dask: str = "local"

    @property
    def label(self) -> str:
        return f"factors of {len(self.autocorrelation.facts['block_dims'])} blocks at damping {self.damping:g}"

    def inputs(self) -> dict[str, Any]:
        return {"autocorrelation": self.autocorrelation.digest, "damping": self.damping}


class SpectrumRequest(IndexedShards):
    """The eigenvalues of R_train."""

    kind: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 2

    autocorrelation: Artifact

    @property
    def label(self) -> str:
        return f"spectrum of R, {len(self.block_dims)} blocks"

    def inputs(self) -> dict[str, Any]:
        return {"autocorrelation": self.autocorrelation.digest}


class TrainNormsRequest(IndexedShards):
    """‖ψ‖² of every document: by damped R_train, or by the identity where nothing is whitened."""

    kind: ClassVar[str] = "train_norms"
    version: ClassVar[int] = 2

    factors: Artifact | None

    @property
    def label(self) -> str:
        return f"norms of {self.num_documents} documents"

    def inputs(self) -> dict[str, Any]:
        """Those of withdrawn documents are there too, and not used."""
        return {
            "shards": [shard.digest for shard in self.shards],
            "factors": self.factors and self.factors.digest,
        }


@stage
def write_factors(request: FactorRequest, draft: Draft) -> None:
    """C of every block."""
    create_triangles(draft.path / FACTORS)
    source = request.autocorrelation.path(request.index)
    blocks = request.autocorrelation.facts["block_dims"]
    parts = [part(_write_block_factor, source, block, request.damping, draft.path / FACTORS) for block in blocks]
    compute(parts, where=request.dask)
    draft.facts |= {"damping": request.damping, "block_dims": blocks}


@stage
def write_spectrum(request: SpectrumRequest, draft: Draft) -> None:
    """The eigenvalues of every block's R_train, largest first."""
    directory = request.autocorrelation.path(request.index)
    facts = request.autocorrelation.facts
    blocks, rows = list(request.block_dims), spectrum_rows(request)
    parts = [part(block_spectrum, rows, directory, block, facts["num_documents"]) for block in blocks]
    write_arrays(draft.path / SPECTRUM, dict(zip(blocks, compute(parts, where=request.dask), strict=True)))
    draft.facts |= {"num_documents": facts["num_documents"]}


@stage
def write_train_norms(request: TrainNormsRequest, draft: Draft) -> None:
    """‖C^-1 φ‖² and ‖φ‖² of every document in every block, one file a shard."""
    factors = request.factors and request.factors.path(request.index)
    shards = [shard.path(request.index) for shard in request.shards if shard.facts["num_documents"]]
    parts = []
    for start in range(0, len(shards), SHARDS_AT_ONCE):
        run = shards[start : start + SHARDS_AT_ONCE]
        norms = [part(_block_norms, run, factors, block) for block in request.block_dims]
        parts.append(part(_write_norms, norms, [draft.path / norms_file(shard.name) for shard in run]))
    compute(parts, where=request.dask)


def spectrum_rows(request: SpectrumRequest) -> list[ShardRows]:
    """The rows R_train is taken from, where they are fewer than a block has dimensions; else none are needed."""
    facts = request.autocorrelation.facts
    if facts["num_documents"] >= max(request.block_dims.values()):
        return []
    return used_rows(request, request.withdrawn(), sample=facts["sample"])


class TrainWhitening(NamedTuple):
    """R_train as scores take it: by factors, as s I of every block, or not at all.

    Attributes:
        factors: C of damped R_train.
        mean_squares: s by block, in the order of the blocks, where R_train is flat.
        norms: ‖ψ‖² and ‖φ‖² by shard, where the shards' own ‖φ‖² are not enough.
    """

    factors: UPath | None = None
    mean_squares: dict[str, float] | None = None
    norms: UPath | None = None

    @classmethod
    def of_ranking(cls, facts: Mapping[str, Any], index: str) -> "TrainWhitening":
        """What a ranking was made with."""
        named = (facts["factors"], facts["train_norms"])
        factors, norms = (artifact_path(index, name) if name else None for name in named)
        return cls(factors, facts.get("mean_squares"), norms)

    def factor(self, block: str) -> ndarray | float:
        """C of one block, or c for c I."""
        if self.factors is not None:
            return read_lower(self.factors, FACTORS, block)
        return 1.0 if self.mean_squares is None else self.mean_squares[block] ** 0.5

    def document_norms(self, shard: UPath) -> tuple[ndarray, ndarray]:
        """‖ψ‖² and ‖φ‖² of a shard's documents, one column a block."""
        if self.norms is not None:
            found = read_arrays(self.norms, norms_file(shard.name))
            return found[TRAIN_NORMS], found[PLAIN_NORMS]
        plain = read_document_norms(shard)
        return (plain if self.mean_squares is None else plain / list(self.mean_squares.values())), plain


def _write_block_factor(autocorrelation: UPath, block: str, damping: float, target: UPath) -> None:
    write_lower(target, block, block_factor(autocorrelation, block, damping))


def block_spectrum(rows: Sequence[ShardRows], autocorrelation: UPath, block: str, num_documents: int) -> ndarray:
    """Eigenvalues of R; with fewer documents n than dimensions d, those of the smaller ΦΦᵀ / n, which are the same."""
    R = read_lower(autocorrelation, MATRICES, block)
    if num_documents >= len(R):
        return curvature.spectrum(R)
    phi = np.concatenate(list(block_rows(rows, block))).astype(np.float64)
    values = curvature.spectrum(phi @ phi.T / num_documents)
    return np.concatenate([values, np.zeros(len(R) - num_documents)])


def _block_norms(shards: Sequence[UPath], factors: UPath | None, block: str) -> list[tuple[ndarray, ndarray]]:
    """‖ψ‖² and ‖φ‖² of the documents of each shard."""
    C = None if factors is None else read_lower(factors, FACTORS, block)
    return [shard_norms(shard, C, block) for shard in shards]


def shard_norms(shard: UPath, C: ndarray | None, block: str) -> tuple[ndarray, ndarray]:
    """‖C^-1 φ‖² and ‖φ‖² of a shard's documents in one block."""
    train, plain = [], []
    reader = GradientReader(shard)
    for window in reader.windows():
        rows = reader.rows(block, *window)
        plain.append(curvature.squared_norms(rows))
        train.append(plain[-1] if C is None else curvature.squared_norms(curvature.whiten(C, rows)))
    return np.concatenate(train), np.concatenate(plain)


def _write_norms(blocks: Sequence[Sequence[tuple[ndarray, ndarray]]], targets: Sequence[UPath]) -> None:
    for target, of_shard in zip(targets, zip(*blocks, strict=True), strict=True):
        train, plain = (np.stack(columns, axis=1) for columns in zip(*of_shard, strict=True))
        write_arrays(target, {TRAIN_NORMS: train, PLAIN_NORMS: plain})
