"""Dense retrieval with any local sentence encoder: the stand-in for the paper's Gecko.

e(text)  the encoder's last hidden states, pooled as it says itself, else their mean, divided by the vector's length
score    e(query) · e(document)
"""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy import ndarray
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import DOCUMENTS, EMBEDDINGS, location
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays, write_arrays
from trackstar.storage.queries import Query, asked
from trackstar.storage.results import PROPONENT
from trackstar.storage.tables import read_table
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.index.contents import Index
from trackstar.tasks.methods.bm25 import search_text
from trackstar.tasks.methods.pooling import Pooling, pool, read_pooling, read_settings
from trackstar.tasks.models.checkpoint import Checkpoint, read_checkpoint
from trackstar.tasks.models.loading import Loader
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest, gather, stage
from trackstar.tasks.scoring.rankings import rank_parts, write_ranking

TEXTS_AT_ONCE = 32
EMBEDDING = "embedding"
HEADS = ("pooler.",)  # over the states that are pooled here
CAUSAL = ("ForCausalLM", "LMHeadModel")

logger = logging.getLogger(__name__)


class Encoder(BaseModel):
    """A sentence encoder on disk, how it pools, and the number of tokens it reads of a text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Checkpoint
    architecture: str
    pooling: Pooling
    max_tokens: int


def read_encoder(path: str) -> Encoder:
    """Identify the encoder in a directory; say so where nothing says that it is one.

    Raises:
        InputError: There is none, it is not whole, pools in an unknown way, or does not say how much it reads.
    """
    directory, checkpoint = location(path), read_checkpoint(path)
    pooling, max_tokens = read_pooling(directory), _max_tokens(directory)
    outline = _loader(path).outline()
    if not pooling.is_stated:
        logger.warning("%s %s; its states are averaged over the tokens of a text", path, _doubt(outline.config))
    return Encoder(checkpoint=checkpoint, architecture=type(outline).__name__, pooling=pooling, max_tokens=max_tokens)


class EmbeddingRequest(StageRequest):
    """The documents of one shard of an index, to be embedded."""

    kind: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 2

    encoder: Encoder
    documents: Artifact

    @property
    def label(self) -> str:
        return f"{self.encoder.checkpoint.name} on {self.documents.facts['num_documents']} documents"

    def inputs(self) -> dict[str, Any]:
        return {**_identity(self.encoder), "documents": self.documents.digest}


class DenseRequest(StageRequest):
    """A query set to be ranked by the similarity of embeddings."""

    kind: ClassVar[str] = "rankings"
    version: ClassVar[int] = 3

    encoder: Encoder
    documents: tuple[Artifact, ...]
    embeddings: tuple[Artifact, ...]
    queries: tuple[Query, ...]
    top_k: int
    tombstones: Artifact | None = None

    @property
    def label(self) -> str:
        return f"dense scores of {len(self.queries)} queries"

    def inputs(self) -> dict[str, Any]:
        return {
            **_identity(self.encoder),
            "embeddings": [artifact.digest for artifact in self.embeddings],
            "queries": asked(self.queries),
            "top_k": self.top_k,
            "tombstones": self.tombstones and self.tombstones.digest,
        }


def rank_densely(index: Index, queries: Sequence[Query], *, encoder: str, top_k: int) -> Artifact:
    """The dense ranking of a query set over the documents of an index, which are embedded once."""
    found = read_encoder(encoder)
    documents = [shard for shard in index.shards if shard.facts["num_documents"]]
    requests = [EmbeddingRequest(index=str(index.path), encoder=found, documents=shard) for shard in documents]
    embeddings = gather(embed_documents.map(requests))
    return rank_by_embeddings(
        DenseRequest(
            index=str(index.path),
            encoder=found,
            documents=tuple(documents),
            tombstones=index.tombstones,
            embeddings=tuple(embeddings),
            queries=tuple(queries),
            top_k=top_k,
        )
    )


@stage
def embed_documents(request: EmbeddingRequest, draft: Draft) -> None:
    """Write the embedding of every document of one shard [n d]."""
    texts = read_table(request.documents.path(request.index), DOCUMENTS)["text"].to_list()
    with progress(request.label, total=len(texts), unit="documents") as advance:
        parts = []
        for part in embed(request.encoder, texts):
            parts.append(part)
            advance(len(part))
    write_arrays(draft.path / EMBEDDINGS, {EMBEDDING: np.concatenate(parts)})
    draft.facts |= {"num_documents": len(texts)}


@stage
def rank_by_embeddings(request: DenseRequest, draft: Draft) -> None:
    """Write each query's most similar documents; there are no opponents, unlike texts speak against nothing."""
    queries = np.concatenate(list(embed(request.encoder, [search_text(query) for query in request.queries])))
    stored = (read_arrays(artifact.path(request.index), EMBEDDINGS)[EMBEDDING] for artifact in request.embeddings)
    parts = (queries.astype(np.float64) @ documents.astype(np.float64).T for documents in stored)
    candidates = Candidates(request.documents, request.index, request.tombstones)
    write_ranking(
        draft,
        rank_parts(parts, candidates, top_k=request.top_k, kinds=(PROPONENT,)),
        method="dense",
        query_ids=[query.id for query in request.queries],
        candidates=candidates,
    )
    encoder = request.encoder
    draft.facts |= {
        "encoder": encoder.checkpoint.name,
        "architecture": encoder.architecture,
        "pooling": encoder.pooling.mode,
        "pooling_source": encoder.pooling.source,
        "max_tokens": encoder.max_tokens,
    }


def embed(encoder: Encoder, texts: Sequence[str]) -> Iterator[ndarray]:
    """The embeddings [n d] of some texts at a time, in order."""
    tokenizer, model = _load(encoder.checkpoint)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield _embed_batch(model, tokenizer, list(texts[start : start + TEXTS_AT_ONCE]), encoder)


@torch.no_grad()
def _embed_batch(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], encoder: Encoder) -> ndarray:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt")
    batch = {name: values.to(model.device) for name, values in batch.items()}
    states = model(**batch).last_hidden_state.float()
    return normalize(pool(states, batch["attention_mask"], encoder.pooling.mode), dim=1).cpu().numpy()


@lru_cache(maxsize=1)
def _load(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, padding_side="right")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{checkpoint.path} cannot be loaded as a sentence encoder: {reason}") from error
    if tokenizer.pad_token is None:  # what a batch is filled up with is masked
        tokenizer.pad_token = tokenizer.eos_token
    model = _loader(checkpoint.path).model()
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _loader(path: str) -> Loader:
    return Loader(AutoModel, path, what="a sentence encoder", unneeded=HEADS, dtype=torch.float32)


def _doubt(config: PreTrainedConfig) -> str:
    """Why a model may be no sentence encoder."""
    causal = [name for name in config.architectures or () if name.endswith(CAUSAL)]
    return f"is a {causal[0]}, a causal language model" if causal else "states no pooling (modules.json)"


def _identity(encoder: Encoder) -> dict[str, Any]:
    return {"encoder": encoder.checkpoint.digest, "max_tokens": encoder.max_tokens, "pooling": encoder.pooling.mode}


def _max_tokens(directory: UPath) -> int:
    """What sentence-transformers was told, else the most positions there are."""
    said = read_settings(directory / "sentence_bert_config.json").get("max_seq_length")
    positions = said or read_settings(directory / "config.json").get("max_position_embeddings")
    if not isinstance(positions, int):
        raise InputError(
            f"{directory} states neither max_seq_length (sentence_bert_config.json) nor max_position_embeddings "
            "(config.json); write one of them"
        )
    return positions
