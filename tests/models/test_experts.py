"""A checkpoint of fused experts through all that a checkpoint goes through, against autograd in float64."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tests.oracle import Oracle
from tests.tiny import QUERIES, TEXTS
from trackstar.tasks.index.second_moment import SecondMomentRequest, write_second_moment
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig, dense_scales
from trackstar.tasks.models.selfcheck import selfcheck
from trackstar.tasks.models.tokens import tokenize_documents
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.loss import TokenLoss
from trackstar.tasks.numerics.tail_patch import Step, stepped
from trackstar.tasks.runtime.stage import build

pytestmark = pytest.mark.numerical

MODEL = ModelConfig(device="cpu", token_budget=64)


@pytest.fixture(scope="module")
def mixtral(llama, tmp_path_factory) -> Path:
    """A two-layer Mixtral of three experts, trained a little by Adam."""
    directory = tmp_path_factory.mktemp("mixtral") / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(llama)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = MixtralConfig(vocab_size=len(tokenizer), num_key_value_heads=1, num_local_experts=3, **shape, **ends)
    config.max_position_embeddings = 32
    model = MixtralForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids in tokenize_documents(tokenizer, TEXTS):
        tokens = torch.tensor([ids[:32]])
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    return directory


def _spec(checkpoint: Path, index: Path, *, mode: str, gradient: GradientConfig) -> EngineSpec:
    common = {"index": str(index), "checkpoint": read_checkpoint(str(checkpoint)), "model": MODEL, "gradient": gradient}
    V = build(write_second_moment.body, SecondMomentRequest(mode=mode, **common))
    return EngineSpec(second_moment=V, **common)


@pytest.mark.parametrize("mode", ["factored", "full"])
@pytest.mark.parametrize("projection", ["two_sided", "none"])
def test_gradients_divided_by_the_optimizers_second_moment_equal_the_oracle(mixtral, tmp_path, mode, projection):
    gradient = GradientConfig(projection=projection, projection_dim=4)
    engine = Engine(_spec(mixtral, tmp_path, mode=mode, gradient=gradient))
    texts = TEXTS[:6]
    _, vectors = engine.gradients(tokenize_documents(engine.tokenizer, texts), first_targets=[1] * len(texts))
    oracle = Oracle(mixtral, texts, QUERIES[:1])
    is_projected = projection != "none"
    expected, _ = oracle.vectors(mode, projection_dim=4 if is_projected else None, pooled=is_projected)
    for name, rows in zip(oracle.blocks, expected, strict=True):
        error = torch.from_numpy(vectors[name] - rows).norm(dim=1) / torch.from_numpy(rows).norm(dim=1)
        assert error.max() < 1e-4, name  # 1/√V is large where V is tiny, and float32 rounding with it


def test_the_self_check_holds(mixtral):
    result = selfcheck(str(mixtral), ModelConfig(device="cpu"))
    assert result.holds, result


def test_a_training_step_moves_every_expert_by_its_own_scale_and_is_undone(mixtral, tmp_path):
    spec = _spec(mixtral, tmp_path, mode="factored", gradient=GradientConfig())
    engine = Engine(spec)
    scales = dense_scales(engine.model, spec, device=torch.device("cpu"))
    parameters = {matrix.parameter for matrix in find_weight_matrices(engine.model)}
    assert {name: scale.shape for name, scale in scales.items()} == {
        name: engine.model.get_parameter(name).shape for name in parameters
    }
    tokens = torch.tensor(tokenize_documents(engine.tokenizer, TEXTS[:1])[0])
    before = copy.deepcopy(engine.model.state_dict())
    with stepped(engine.model, TokenLoss(engine.model), tokens, Step(scales, 1e-2), saved=before):
        assert all((engine.model.state_dict()[name] != before[name]).any() for name in parameters)
    assert all(torch.equal(value, before[name]) for name, value in engine.model.state_dict().items())
