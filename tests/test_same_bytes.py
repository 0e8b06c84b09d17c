"""The same work in two processes leaves the same bytes: nothing rests on the order a parser or a set gives names in."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.corruption import snapshot
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import COST, DOCUMENTS
from trackstar.storage.tables import read_table
from trackstar.tasks.index.corpus import CorpusConfig, plan_file, plan_requests
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import EngineSpec, GradientConfig
from trackstar.tasks.runtime.stage import build

FLOAT32_ROUNDING = 1e-5  # of a row's length: a few hundred sums of numbers that each are off by 6e-8 at most

MAKE = """
import sys
from pathlib import Path
from tests.corruption import World
root, checkpoint, corpus = map(Path, sys.argv[1:])
World(root, checkpoint, corpus, num_layer_blocks=2).make()
"""


@pytest.fixture
def corpus_file(corpus):
    return next(iter(sorted(corpus.iterdir())))


def test_index_rankings_and_run_json_are_the_same_bytes_from_process_to_process(llama, corpus_file, tmp_path):
    made = []
    for hash_seed in ("1", "2"):
        root = tmp_path / "world"
        subprocess.run(
            [sys.executable, "-c", MAKE, root, llama, corpus_file],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
        made.append({name: content for name, content in snapshot(root).items() if not name.endswith(COST)})
        root.rename(tmp_path / f"made-{hash_seed}")
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []


def indexed(root, checkpoint, corpus_file, token_budget):
    """The one shard of a corpus file."""
    corpus = CorpusConfig(paths=(str(corpus_file),), shard_size=100)
    (plan,) = plan_requests(corpus)
    engine = EngineSpec(
        index=str(root),
        checkpoint=read_checkpoint(str(checkpoint)),
        model=ModelConfig(token_budget=token_budget),
        gradient=GradientConfig(projection_dim=4),
        second_moment=None,
    )
    (request,) = shard_requests(engine, corpus, plan_file.fn(plan).shards, store_as="float32")
    return build(index_shard.body, request).path(str(root))


def test_the_token_budget_changes_rows_by_rounding_and_neither_documents_nor_names(llama, corpus_file, tmp_path):
    one, many = (indexed(tmp_path / str(budget), llama, corpus_file, budget) for budget in (40, 4000))
    assert one.name == many.name
    left, right = (read_table(path, DOCUMENTS) for path in (one, many))
    assert left.drop("loss").equals(right.drop("loss"))
    np.testing.assert_allclose(left["loss"], right["loss"], rtol=FLOAT32_ROUNDING)
    for block in GradientReader(one).block_names:
        rows, others = (GradientReader(path).rows(block, 0, len(left)) for path in (one, many))
        lengths = np.linalg.norm(rows, axis=1)
        assert (np.linalg.norm(rows - others, axis=1) <= FLOAT32_ROUNDING * lengths).all()
