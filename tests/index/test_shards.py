"""A shard's documents: those without a direction are set aside, with the reason."""

import numpy as np
import polars as pl
import pytest
import torch

from tests.tiny import TEXTS
from trackstar.storage.corpus import plan_shards
from trackstar.storage.gradients import GradientReader
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig
from trackstar.tasks.runtime.stage import build

REASONS = {0: "the gradient is not finite", 3: "the gradient is not finite", 4: "the gradient is zero"}


@pytest.fixture
def spoiled(monkeypatch):
    """An engine that returns NaN for document 0, infinity for 3 and zeros for 4."""
    whole = Engine.gradients

    def gradients(self, sequences, **options):
        losses, vectors = whole(self, sequences, **options)
        first = next(iter(vectors.values()))
        first[0, 5], first[3, 1] = np.nan, -np.inf
        for rows in vectors.values():
            rows[4] = 0
        return losses, vectors

    monkeypatch.setattr(Engine, "gradients", gradients)
    return whole


def test_documents_whose_gradient_is_not_finite_or_zero_are_quarantined(llama, corpus, tmp_path, spoiled):
    config = CorpusConfig(paths=(str(corpus / "part-0.jsonl"),))
    spec = EngineSpec(
        index=str(tmp_path / "index"),
        checkpoint=read_checkpoint(str(llama)),
        model=ModelConfig(device="cpu"),
        gradient=GradientConfig(projection_dim=4),
        second_moment=None,
    )
    (shard,) = plan_shards(config.files()[0], shard_size=100)
    (request,) = shard_requests(spec, config, [shard], dtype="float32")
    directory = build(index_shard.body, request).path(spec.index)
    quarantine = pl.read_parquet(str(directory / "quarantine.parquet"))
    assert dict(quarantine.select("row", "reason").iter_rows()) == REASONS
    kept = [row for row in range(len(TEXTS) // 2) if row not in REASONS]
    assert pl.read_parquet(str(directory / "documents.parquet"))["row"].to_list() == kept
    engine, reader = Engine(spec), GradientReader(directory)
    texts = [TEXTS[row] for row in kept]
    sequences = engine.tokenizer(texts)["input_ids"]
    _, expected = spoiled(engine, sequences, first_targets=[1] * len(texts))
    for block, rows in expected.items():
        stored = torch.from_numpy(reader.rows(block, 0, len(kept)))
        torch.testing.assert_close(stored, torch.from_numpy(rows), rtol=1e-4, atol=1e-6)  # batched in other company
