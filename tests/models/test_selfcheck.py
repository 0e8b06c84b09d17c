"""The self-check passes where the promises hold, and fails where one is broken."""

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaConfig

from trackstar.flows.cli.commands import app
from trackstar.tasks.models.checkpoint import ModelConfig
from trackstar.tasks.models.selfcheck import check_model, selfcheck
from trackstar.tasks.numerics.gradients import GradientEngine

pytestmark = pytest.mark.numerical

SEQUENCES = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9, 3, 2, 3, 8, 4]]
CAUSALITY = "a later token changes no earlier prediction"


def _llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def _failed(model) -> set[str]:
    checks = check_model(model, dtype="float32", sequences=SEQUENCES).checks
    return {check.name for check in checks if not check.holds}


@pytest.mark.parametrize(("checkpoint", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("llama", "float64")])
def test_a_causal_checkpoint_passes_every_check(checkpoint, dtype, request):
    result = selfcheck(str(request.getfixturevalue(checkpoint)), ModelConfig(device="cpu", dtype=dtype))
    assert result.holds, result
    assert result.attention == "sdpa"
    assert len(result.checks) == 5


def test_a_model_that_looks_ahead_fails():
    model = _llama()
    model.model.layers[0].register_forward_hook(lambda _, __, hidden: hidden + hidden.flip(1))
    assert {CAUSALITY, "padding and company"} <= _failed(model)


def test_a_model_whose_rows_see_each_other_fails():
    model = _llama()
    model.model.layers[0].register_forward_hook(lambda _, __, hidden: hidden + hidden.mean(0, keepdim=True))
    assert "padding and company" in _failed(model)


def test_a_wrong_gradient_fails(monkeypatch):
    monkeypatch.setattr(GradientEngine, "__call__", _doubled(GradientEngine.__call__))
    assert _failed(_llama()) == {"autograd in float64"}


def _doubled(call):
    def doubled(self, *arguments):
        losses, vectors = call(self, *arguments)
        return losses, {name: 2 * rows for name, rows in vectors.items()}

    return doubled


def test_a_gradient_that_is_not_finite_fails():
    model = _llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert "padding and company" in _failed(model)


def test_the_command_exits_with_1_if_a_promise_is_broken(llama, monkeypatch):
    command = [str(llama), "--device", "cpu"]
    assert CliRunner().invoke(app, ["selfcheck", "--checkpoint", *command]).exit_code == 0
    monkeypatch.setattr(GradientEngine, "__call__", _doubled(GradientEngine.__call__))
    result = CliRunner().invoke(app, ["selfcheck", "--checkpoint", *command])
    assert result.exit_code == 1
    assert "autograd in float64" in result.output
