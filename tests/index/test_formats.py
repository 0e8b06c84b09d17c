"""A shard of masked documents: the stored rows are the gradients of their targets, and other methods see the same."""

import json

import numpy as np
import polars as pl
import torch

from trackstar.storage.corpus import plan_shards
from trackstar.storage.gradients import GradientReader
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.methods.plain_gradients import PlainShardRequest, write_plain_shard
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig
from trackstar.tasks.runtime.stage import build


def test_a_shard_of_pairs_and_tokens_is_indexed_by_its_targets(llama, tmp_path):
    rows = [
        {"prompt": "The river sleeps", "completion": " under the bridge."},
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6], "labels": [-100, -100]},
        {"text": "A heron"},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(paths=(str(tmp_path / "c.jsonl"),))
    spec = EngineSpec(
        index=str(tmp_path / "index"),
        checkpoint=read_checkpoint(str(llama)),
        model=ModelConfig(device="cpu"),
        gradient=GradientConfig(projection_dim=4),
        second_moment=None,
    )
    (shard,) = plan_shards(config.files()[0], shard_size=100, reading=config.reading)
    (request,) = shard_requests(spec, config, [shard], store_as="float32")
    artifact = build(index_shard.body, request)
    directory = artifact.path(spec.index)
    table = pl.read_parquet(str(directory / "documents.parquet"))
    assert table["row"].to_list() == [0, 1, 3]
    assert table["text"][0] == "The river sleeps under the bridge."
    assert table["is_target"].to_list()[1:] == [[False, False, True, True], None]
    quarantine = pl.read_parquet(str(directory / "quarantine.parquet"))
    assert quarantine.select("row", "reason").rows() == [(2, "no token's loss counts")]
    _, expected = Engine(spec).gradients([[5, 6, 7, 8]], first_targets=[2])
    plain = build(write_plain_shard.body, PlainShardRequest(index=spec.index, engine=spec, documents=artifact))
    for reader in (GradientReader(directory), GradientReader(plain.path(spec.index))):
        for block, vectors in expected.items():
            stored = torch.from_numpy(np.array(reader.rows(block, 1, 2)))
            torch.testing.assert_close(stored, torch.from_numpy(vectors), rtol=1e-4, atol=1e-6)  # other company
