"""Sentence embeddings of an index's documents: the index's own where they are, else computed once and held."""

from collections.abc import Iterator

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, EMBEDDINGS
from trackstar.storage.matrices import read_arrays
from trackstar.storage.tables import read_table
from trackstar.tasks.asking.held import Memory
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index
from trackstar.tasks.methods.dense import EMBEDDING, EmbeddingRequest, embed, read_encoder
from trackstar.tasks.runtime.stage import finished

FLOAT32_BYTES = 4


class HeldEmbeddings:
    """The documents of an index as one sentence encoder sees them."""

    def __init__(self, index: Index, encoder: str, memory: Memory) -> None:
        self._index, self._encoder, self._memory = index, read_encoder(encoder), memory
        self._shards = {shard.path(str(index.path)): shard for shard in index.shards}

    def scores(self, text: str, candidates: Candidates) -> Iterator[tuple[ndarray, ndarray]]:
        """Positions [n] of documents that were not withdrawn, and their similarity to a text [1 n]."""
        (query,) = embed(self._encoder, [text])
        for path, start in candidates.shards():
            documents = self._of_shard(path, width=query.shape[1])
            positions = candidates.live(start, start + len(documents))
            similarity = query.astype(np.float64) @ documents.astype(np.float64).T
            yield positions, similarity[:, positions - start]

    def _of_shard(self, path: UPath, *, width: int) -> ndarray:
        shard = self._shards[path]
        request = EmbeddingRequest(index=str(self._index.path), encoder=self._encoder, documents=shard)
        artifact = finished(request)
        if artifact is not None:
            return read_arrays(artifact.path(str(self._index.path)), EMBEDDINGS)[EMBEDDING]
        return self._computed(path, FLOAT32_BYTES * width * shard.facts["num_documents"])

    def _computed(self, path: UPath, num_bytes: int) -> ndarray:
        def load() -> ndarray:
            return np.concatenate(list(embed(self._encoder, read_table(path, DOCUMENTS)["text"].to_list())))

        held = self._memory.keep(("embeddings", path), num_bytes, load)
        if held is None:
            raise InputError(
                f"the embeddings of {self._index.path} do not fit in memory_bytes={self._memory.limit_bytes}; raise "
                "it, or write them to the index once with `trackstar compare --methods dense`"
            )
        return held
