"""Whether what an index stores is what the checkpoint says: the gradients of a few documents, computed once more."""

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.tables import read_table
from trackstar.tasks.index.contents import Index
from trackstar.tasks.models.document_tokens import kept_tokens
from trackstar.tasks.models.engine import open_engine

SAMPLE = 4  # documents


def stored_agreement(index: Index) -> float:
    """Return the lowest cosine of a stored encoding with the gradient it is of, over the first documents."""
    shard = next(shard for shard in index.shards if shard.facts["num_documents"]).path(str(index.path))
    table = read_table(shard, DOCUMENTS).head(SAMPLE)
    with open_engine(index.engine) as engine:
        documents = kept_tokens(engine.tokenizer, table)
        _, vectors = engine.gradients([row.ids for row in documents], first_targets=[row.targets for row in documents])
    reader = GradientReader(shard)
    return float(cosines({name: reader.rows(name, 0, len(documents)) for name in vectors}, vectors).min())


def cosines(stored: Mapping[str, ndarray], computed: Mapping[str, ndarray]) -> ndarray:
    """Return ``Σ_b <s_b, g_b> / (‖s‖ ‖g‖)`` of each document, over all blocks b [n d_b] together."""

    def products(one: Mapping[str, ndarray], other: Mapping[str, ndarray]) -> ndarray:
        return sum(np.einsum("nd,nd->n", one[name], other[name], dtype=np.float64) for name in one)

    return products(stored, computed) / np.sqrt(products(stored, stored) * products(computed, computed))
