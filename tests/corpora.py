"""Indexes of texts alone, for the stages that read no gradient."""

from collections.abc import Mapping, Sequence

import polars as pl
from upath import UPath

from trackstar.storage.layout import DOCUMENTS
from trackstar.storage.manifest import Artifact, new_artifact, require_manifest
from trackstar.storage.tables import write_table


def write_texts(index: UPath, shards: Sequence[Mapping[str, str]]) -> tuple[Artifact, ...]:
    """Shards whose documents are texts by id, as indexing leaves them but for the gradients."""
    references = []
    for number, texts in enumerate(shards):
        name = f"shards/{number:016x}"
        with new_artifact(index / name, kind="shards", identity={"number": number}) as draft:
            columns = {"id": list(texts), "text": list(texts.values())}
            write_table(draft.path / DOCUMENTS, pl.DataFrame(columns, schema={"id": pl.String, "text": pl.String}))
            draft.facts |= {"num_documents": len(texts), "block_dims": {"mlp.00": 4}}
        manifest = require_manifest(index / name)
        references.append(Artifact(name=name, digest=manifest.digest, facts=manifest.facts))
    return tuple(references)
