"""A shard's documents: those without a direction are set aside, with the reason."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import TEXTS
from trackstar.storage.corpus import plan_shards
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import SECOND_MOMENT, location
from trackstar.storage.manifest import Artifact, new_artifact, require_manifest
from trackstar.storage.tables import write_table
from trackstar.tasks.index.contents import require_documents
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.second_moment import SecondMomentRequest, write_second_moment
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig
from trackstar.tasks.models.optimizer_state import write_second_moments
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.second_moment import FullSecondMoment
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
    (request,) = shard_requests(spec, config, [shard], store_as="float32")
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


@pytest.mark.parametrize(
    ("reasons", "sentence"),
    [
        (
            ["the gradient is not finite"] * 3 + ["the text is empty"],
            '3 of 4 quarantined rows have the reason "the gradient is not finite"; check the checkpoint .* --dtype',
        ),
        (
            ["the text is empty", "the text is empty", "the gradient is zero"],
            '2 of 3 quarantined rows have the reason "the text is empty"; check the corpus and its text column',
        ),
        ([], "it has no rows; name files that hold some"),
    ],
)
def test_a_corpus_of_no_use_is_refused_with_the_commonest_reason(tmp_path, reasons, sentence):
    shards = []
    for number, part in enumerate((reasons[:1], reasons[1:])):
        with new_artifact(location(tmp_path) / f"shards/{number:016x}", kind="shards", identity={}) as draft:
            table = pl.DataFrame({"reason": part}, schema={"reason": pl.String})
            write_table(draft.path / "quarantine.parquet", table)
        place = location(tmp_path) / f"shards/{number:016x}"
        digest = require_manifest(place).digest
        shards.append(Artifact(name=f"shards/{number:016x}", digest=digest, facts={"num_documents": 0}))
    with pytest.raises(InputError, match=f"the corpus has no usable document: {sentence}"):
        require_documents(shards, index=str(tmp_path))


@pytest.mark.parametrize("mode", ["factored", "full"])
@pytest.mark.parametrize("root", [1e-4, 1e-12])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_document_is_quarantined_for_a_small_second_moment(llama, corpus, tmp_path, mode, root, dtype):
    checkpoint = shutil.copytree(llama, tmp_path / "checkpoint")
    matrices = find_weight_matrices(AutoModelForCausalLM.from_pretrained(llama))
    V = {matrix.name: FullSecondMoment(torch.full(matrix.shape, root**2)) for matrix in matrices}
    write_second_moments(checkpoint / SECOND_MOMENT, V, matrices=matrices)
    config = CorpusConfig(paths=(str(corpus / "part-0.jsonl"),))
    common = {
        "index": str(tmp_path / "index"),
        "checkpoint": read_checkpoint(str(checkpoint)),
        "model": ModelConfig(device="cpu", dtype=dtype),
        "gradient": GradientConfig(projection_dim=4),
    }
    V = build(write_second_moment.body, SecondMomentRequest(mode=mode, **common))
    found = []
    for second_moment in (None, V):
        spec = EngineSpec(second_moment=second_moment, **common)
        (shard,) = plan_shards(config.files()[0], shard_size=100)
        (request,) = shard_requests(spec, config, [shard], store_as="float32")
        artifact = build(index_shard.body, request)
        assert artifact.facts["num_quarantined"] == 0
        reader = GradientReader(artifact.path(spec.index))
        blocks = artifact.facts["block_dims"]
        found.append(np.concatenate([reader.rows(block, 0, reader.num_rows) for block in blocks], axis=1))
    plain, corrected = found
    # V is the same everywhere, so that the two differ by rounding: of L and L / √V, and of their products
    np.testing.assert_allclose(corrected * root, plain, rtol=0.05, atol=0.05 * np.abs(plain).max())
