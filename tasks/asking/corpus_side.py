"""What a question needs to know of R_train: its factors, every document's norms, and its spectrum.

Where R_train is s I, all of it follows from what the shards keep.

The index's own artifacts serve where an earlier run has written them. Where they are missing they are computed and held
in memory, and nothing is written, unless ``prepare`` is asked for, which writes them as that run would have.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import SPECTRUM
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_arrays
from trackstar.tasks.asking.held import HeldRows, Memory, shard_rows
from trackstar.tasks.index.contents import Index
from trackstar.tasks.index.curvature import IndexedShards, block_factor
from trackstar.tasks.index.norms import has_norms, mean_squares
from trackstar.tasks.runtime.stage import build, finished
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    TrainWhitening,
    block_spectrum,
    shard_norms,
    spectrum_rows,
    write_factors,
    write_spectrum,
    write_train_norms,
)

FLOAT64_BYTES = 8
Norms = tuple[ndarray, ndarray]  # ‖ψ‖² and ‖φ‖² [n blocks]
Advance = Callable[[int, int], None]  # told how much of how much is done


class CorpusSide:
    """The corpus's side of every score over one index, at one damping.

    Attributes:
        block_dims: Dimensions of every block, in the order of the columns of norms.
        has_curvature: Whether there is an R_train to whiten by.
    """

    def __init__(self, index: Index, *, damping: float | None, memory: Memory) -> None:
        self._index, self._damping, self._memory = index, damping, memory
        self.block_dims = index.block_dims
        self.has_curvature = index.autocorrelation is not None or index.is_flat
        self._artifacts: dict[bool, Artifact] = {}
        self._num_rows = {
            shard.path(str(index.path)): shard.facts["num_documents"]
            for shard in index.shards
            if shard.facts["num_documents"]
        }
        common = {"index": str(index.path), "shards": index.shards, "tombstones": index.tombstones}
        self._plain_request = TrainNormsRequest(factors=None, **common)
        self._flat = TrainWhitening(mean_squares=mean_squares(IndexedShards(**common))) if index.is_flat else None
        if index.autocorrelation is not None:
            R = index.autocorrelation
            self._factor_request = FactorRequest(index=str(index.path), autocorrelation=R, damping=damping)
            self._spectrum_request = SpectrumRequest(autocorrelation=R, **common)

    def prepare(self) -> None:
        """Write what is missing as artifacts of the index, so that later questions find it there."""
        if self._index.autocorrelation is None:
            if not has_norms(self._index.shards):
                build(write_train_norms.body, self._plain_request)
            return
        factors = build(write_factors.body, self._factor_request)
        build(write_spectrum.body, self._spectrum_request)
        build(write_train_norms.body, self._plain_request.model_copy(update={"factors": factors}))

    def rows(self, shard: UPath) -> HeldRows | GradientReader:
        """The gradients of a shard's documents, from memory where there is room for them."""
        return shard_rows(shard, self._num_rows[shard], self.block_dims, self._memory)

    def factor(self, block: str) -> ndarray | float:
        """C of one block, or c for c I; kept where there is room.

        Raises:
            InputError: It is neither on disk nor would it fit in memory.
        """
        if self._flat is not None:
            return self._flat.factor(block)
        num_bytes = FLOAT64_BYTES * self.block_dims[block] ** 2
        artifact = finished(self._factor_request)
        if artifact is not None:
            load = self._reader_of(artifact, block)
            held = self._memory.keep(("factor", block), num_bytes, load)
            return load() if held is None else held
        R = self._index.autocorrelation.path(str(self._index.path))
        held = self._memory.keep(("factor", block), num_bytes, lambda: block_factor(R, block, self._damping))
        return self._require_room(held, "factors")

    def norms(self, shard: UPath, *, whitened: bool) -> Norms:
        """‖ψ‖² and ‖φ‖² of a shard's documents, ‖ψ‖² by R_train or, not whitened, ‖φ‖² again."""
        read = None if self._is_computed(whitened) else self._norms_reader(whitened)
        if read is not None:
            load = partial(read, shard)
            held = self._memory.keep(("norms", whitened, shard), self._norms_bytes(shard), load)
            return load() if held is None else held
        return self.compute_norms(whitened=whitened)[shard]

    def compute_norms(self, *, whitened: bool, advance: Advance = lambda done, total: None) -> Mapping[UPath, Norms]:
        """Measure the norms of all documents where no run has written them; a block is whitened at a time.

        Raises:
            InputError: There is no room for them.
        """
        if not self._is_computed(whitened) and self._norms_reader(whitened) is not None:
            return {}
        num_bytes = sum(map(self._norms_bytes, self._num_rows))
        load = partial(self._measured_norms, whitened, advance)
        return self._require_room(self._memory.keep(("all norms", whitened), num_bytes, load), "norms")

    def spectrum(self) -> dict[str, ndarray]:
        """The eigenvalues of every block's R_train."""
        if self._flat is not None:
            return {block: np.full(self.block_dims[block], s) for block, s in self._flat.mean_squares.items()}
        artifact = finished(self._spectrum_request)
        if artifact is not None:
            return read_arrays(artifact.path(str(self._index.path)), SPECTRUM, order=self.block_dims)
        R = self._index.autocorrelation
        num_bytes = FLOAT64_BYTES * sum(self.block_dims.values())
        held = self._memory.keep("spectrum", num_bytes, lambda: self._compute_spectrum(R))
        return self._require_room(held, "spectrum")

    def _reader_of(self, factors: Artifact, block: str) -> Callable[[], ndarray]:
        return partial(TrainWhitening(factors=factors.path(str(self._index.path))).factor, block)

    def _compute_spectrum(self, R: Artifact) -> dict[str, ndarray]:
        rows, path = spectrum_rows(self._spectrum_request), R.path(str(self._index.path))
        return {block: block_spectrum(rows, path, block, R.facts["num_documents"]) for block in self.block_dims}

    def _is_computed(self, whitened: bool) -> bool:
        return self._memory.get(("all norms", whitened)) is not None

    def _norms_artifact(self, whitened: bool) -> Artifact | None:
        """That of an earlier run; plain norms stand beside whitened ones."""
        if whitened not in self._artifacts:
            requests = [] if whitened else [self._plain_request]
            if self._index.autocorrelation is not None and (factors := finished(self._factor_request)) is not None:
                requests.append(self._plain_request.model_copy(update={"factors": factors}))
            found = next(filter(None, map(finished, requests)), None)
            if found is None:
                return None
            self._artifacts[whitened] = found
        return self._artifacts[whitened]

    def _norms_reader(self, whitened: bool) -> Callable[[UPath], Norms] | None:
        """What reads the norms of a shard; None where nobody has measured them."""
        if whitened and self._flat is not None:
            return self._flat.document_norms
        if not whitened and has_norms(self._index.shards):
            return TrainWhitening().document_norms
        artifact = self._norms_artifact(whitened)
        if artifact is None:
            return None
        measured = TrainWhitening(norms=artifact.path(str(self._index.path)))

        def read(shard: UPath) -> Norms:
            train, plain = measured.document_norms(shard)
            return (train if whitened else plain), plain

        return read

    def _norms_bytes(self, shard: UPath) -> int:
        return 2 * FLOAT64_BYTES * self._num_rows[shard] * len(self.block_dims)

    def _measured_norms(self, whitened: bool, advance: Advance) -> dict[UPath, Norms]:
        shards, blocks = list(self._num_rows), list(self.block_dims)
        columns: dict[UPath, list[Norms]] = {shard: [] for shard in shards}
        for number, block in enumerate(blocks):
            C = self.factor(block) if whitened else None
            for place, shard in enumerate(shards, start=1):
                columns[shard].append(shard_norms(shard, C, block))
                advance(number * len(shards) + place, len(blocks) * len(shards))
        return {
            shard: tuple(np.stack(norms, axis=1) for norms in zip(*of_shard, strict=True))
            for shard, of_shard in columns.items()
        }

    def _require_room(self, held: Any | None, what: str) -> Any:
        if held is None:
            raise InputError(
                f"the {what} of {self._index.path} do not fit in memory_bytes="
                f"{self._memory.limit_bytes}; raise it, or write them to the index once with prepare=True (--prepare)"
            )
        return held
