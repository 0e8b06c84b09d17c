import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trackstar.tasks.numerics.tail_patch import probability_changes


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=31,
        max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def _batch():
    tokens = torch.tensor([[3, 5, 7, 9, 0], [4, 6, 8, 10, 12]])
    chosen = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    return tokens, chosen


def _probability(model, tokens, chosen):
    log_p = torch.log_softmax(model(tokens[None]).logits[0].double(), dim=-1)
    return torch.exp(sum(log_p[t - 1, tokens[t]] for t in range(1, len(tokens)) if chosen[t]))


def _naive_change(model, document, tokens, chosen, scales, learning_rate):
    """The step written out on a copy: mean token loss, divided by √V, clipped to root mean square 1, subtracted."""
    copied = copy.deepcopy(model).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(copied(document[None]).logits[0, :-1], document[1:])
    loss.backward()
    with torch.no_grad():
        for name, scale in scales.items():
            parameter = copied.get_parameter(name)
            update = parameter.grad * scale
            root_mean_square = update.pow(2).mean().sqrt().item()
            parameter -= learning_rate * update / max(1.0, root_mean_square)
        return _probability(copied, tokens, chosen) - _probability(model, tokens, chosen)


@pytest.mark.parametrize("scale", [100.0, 1e5])  # below and above the clipping threshold
def test_change_equals_a_step_on_a_copy_of_the_model(model, scale):
    generator = torch.Generator().manual_seed(1)
    names = [name for name, p in model.named_parameters() if "proj" in name]
    scales = {name: scale * torch.rand(model.get_parameter(name).shape, generator=generator) for name in names}
    documents = [torch.tensor([3, 5, 7, 9, 11]), torch.tensor([20, 21, 22])]
    measured = list(
        probability_changes(model, documents, _batch(), asked=[[0, 1], [1]], scales=scales, learning_rate=0.05)
    )
    for document, rows, changes in zip(documents, [[0, 1], [1]], measured, strict=True):
        for row, change in zip(rows, changes, strict=True):
            tokens, chosen = (part[row] for part in _batch())
            expected = _naive_change(model, document, tokens, chosen, scales, 0.05)
            # float32 probabilities near 1e-3: their difference carries about 1e-9
            assert change.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-8)
            assert abs(expected) > 1e-7


def test_the_model_is_put_back_bit_for_bit(model):
    before = copy.deepcopy(model.state_dict())
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters() if "proj" in name}
    documents = [torch.tensor([3, 5, 7])]
    list(probability_changes(model, documents, _batch(), asked=[[0]], scales=scales, learning_rate=0.1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_queries_run_in_parts_have_the_same_changes(model, monkeypatch):
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters() if "proj" in name}
    settings = {"asked": [[1, 0]], "scales": scales, "learning_rate": 0.1}
    documents = [torch.tensor([3, 5, 7])]
    (whole,) = probability_changes(model, documents, _batch(), **settings)
    monkeypatch.setattr("trackstar.tasks.numerics.tail_patch.ROWS_AT_ONCE", 1)
    (parts,) = probability_changes(model, documents, _batch(), **settings)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-8)  # float32 probabilities near 1e-3


def test_no_gradient_is_held_while_another_is_computed(model):
    """Every parameter has been stepped, and its gradient given up, before the one below it has any."""
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters() if "proj" in name}
    held = []
    for name in scales:
        parameter = model.get_parameter(name).requires_grad_()
        parameter.register_hook(lambda _: held.append(sum(p.grad is not None for p in model.parameters())))
    list(probability_changes(model, [torch.tensor([3, 5, 7])], _batch(), asked=[[0]], scales=scales, learning_rate=0.1))
    assert held == [0] * len(scales)


def test_a_model_is_put_back_after_a_step_that_failed(model):
    before = copy.deepcopy(model.state_dict())
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters() if "proj" in name}
    broken = torch.tensor([3, 5, 1000])  # no such token
    with pytest.raises(IndexError):
        list(probability_changes(model, [broken], _batch(), asked=[[0]], scales=scales, learning_rate=0.1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
