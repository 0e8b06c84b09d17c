"""The matrices of every family are those one would list by hand from the printed model."""

import re

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from trackstar.tasks.numerics.architecture import WeightMatrix, assign_blocks, find_decoder_layers, find_weight_matrices

NUM_LAYERS = 3
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "model.layers.*.self_attn": {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16)},
    "model.layers.*.mlp": {"gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)},
}
LLAMA_SIZES = {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
NEOX_MLP = {"dense_h_to_4h": (64, 16), "dense_4h_to_h": (16, 64)}
SQUARE_HEADS = {"q_proj": (16, 16), "k_proj": (16, 16), "v_proj": (16, 16), "out_proj": (16, 16)}

# model type -> (more settings, expected path of attention and of MLP -> {module: (m, n)})
FAMILIES = {
    **{
        name: (LLAMA_SIZES, LLAMA)
        for name in (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3"),
            *("cohere", "cohere2", "smollm3", "granite"),
        )
    },
    "stablelm": ({"intermediate_size": 24, "num_key_value_heads": 2}, LLAMA),
    "phi": (
        {"intermediate_size": 24, "num_key_value_heads": 2},
        {
            "model.layers.*.self_attn": {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "dense": (16, 16)},
            "model.layers.*.mlp": {"fc1": (24, 16), "fc2": (16, 24)},
        },
    ),
    "phi3": (
        {"intermediate_size": 24, "num_key_value_heads": 2},
        {
            "model.layers.*.self_attn": {"o_proj": (16, 16), "qkv_proj": (32, 16)},
            "model.layers.*.mlp": {"gate_up_proj": (48, 16), "down_proj": (16, 24)},
        },
    ),
    "gpt2": (
        {},
        {
            "transformer.h.*.attn": {"c_attn": (48, 16), "c_proj": (16, 16)},
            "transformer.h.*.mlp": {"c_fc": (64, 16), "c_proj": (16, 64)},
        },
    ),
    "gpt_neo": (
        {"attention_types": [[["global", "local", "global"], 1]]},
        {
            "transformer.h.*.attn": {f"attention.{name}": shape for name, shape in SQUARE_HEADS.items()},
            "transformer.h.*.mlp": {"c_fc": (64, 16), "c_proj": (16, 64)},
        },
    ),
    "gpt_neox": (
        {"intermediate_size": 64},
        {
            "gpt_neox.layers.*.attention": {"query_key_value": (48, 16), "dense": (16, 16)},
            "gpt_neox.layers.*.mlp": NEOX_MLP,
        },
    ),
    "gptj": (
        {"rotary_dim": 4},
        {"transformer.h.*.attn": SQUARE_HEADS, "transformer.h.*.mlp": {"fc_in": (64, 16), "fc_out": (16, 64)}},
    ),
    "opt": (
        {"ffn_dim": 24, "word_embed_proj_dim": 16},
        {
            "model.decoder.layers.*.self_attn": SQUARE_HEADS,
            "model.decoder.layers.*": {"fc1": (24, 16), "fc2": (16, 24)},
        },
    ),
    "bloom": (
        {},
        {
            "transformer.h.*.self_attention": {"query_key_value": (48, 16), "dense": (16, 16)},
            "transformer.h.*.mlp": NEOX_MLP,
        },
    ),
    "falcon": (  # its own subclass of nn.Linear; multi-query
        {},
        {
            "transformer.h.*.self_attention": {"query_key_value": (24, 16), "dense": (16, 16)},
            "transformer.h.*.mlp": NEOX_MLP,
        },
    ),
    "mpt": (
        {},
        {
            "transformer.blocks.*.attn": {"Wqkv": (48, 16), "out_proj": (16, 16)},
            "transformer.blocks.*.ffn": {"up_proj": (64, 16), "down_proj": (16, 64)},
        },
    ),
}


def tiny(model_type: str, **settings) -> nn.Module:
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES, **settings))


def expected_of(family: str) -> list[tuple]:
    """(module, kind, layer, shape); the first path of a family is its attention, the second its MLP."""
    paths = FAMILIES[family][1].items()
    return [
        (f"{path.replace('*', str(layer))}.{module}", kind, layer, shape)
        for layer in range(NUM_LAYERS)
        for kind, (path, modules) in zip(("attention", "mlp"), paths, strict=True)
        for module, shape in modules.items()
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_attention_and_mlp_matrices_are_found(family):
    model = tiny(family, **FAMILIES[family][0])
    found = find_weight_matrices(model)
    assert sorted((w.module, w.kind, w.layer, w.shape) for w in found) == sorted(expected_of(family))
    parameters = dict(model.named_parameters())
    for matrix in found:
        stored = tuple(parameters[matrix.name].shape)
        assert stored == (matrix.shape[::-1] if matrix.transposed else matrix.shape)
        assert matrix.transposed == (family == "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_layer_that_is_left_out_is_a_vector(family):
    model = tiny(family, **FAMILIES[family][0])
    path, _ = find_decoder_layers(model)
    names = {matrix.name for matrix in find_weight_matrices(model)}
    inside = {name: p for name, p in model.named_parameters() if name.startswith(f"{path}.")}
    assert names == {name for name, parameter in inside.items() if parameter.ndim > 1}


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_unembedding_are_never_included(tied):
    found = find_weight_matrices(tiny("llama", **LLAMA_SIZES, tie_word_embeddings=tied))
    assert not [matrix.name for matrix in found if re.search("embed|lm_head", matrix.name)]


def test_matrices_come_in_layer_order_and_then_in_module_order():
    model = tiny("llama", **LLAMA_SIZES)
    order = [name for name, _ in model.named_parameters()]
    positions = [order.index(matrix.name) for matrix in find_weight_matrices(model)]
    assert positions == sorted(positions)


EXPERT_FAMILIES = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts", "olmoe": "num_experts"}


def _experts(family: str) -> nn.Module:
    sizes = {EXPERT_FAMILIES[family]: 5, "num_experts_per_tok": 2}
    if family == "qwen3_moe":
        sizes["moe_intermediate_size"] = 24
    return tiny(family, **LLAMA_SIZES, **sizes)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_every_expert_is_a_matrix_of_its_own_and_the_router_is_one(family):
    model = _experts(family)
    found = {matrix.name: matrix for matrix in find_weight_matrices(model) if matrix.kind == "mlp"}
    expected = {f"model.layers.{layer}.mlp.gate.weight": (5, 16) for layer in range(NUM_LAYERS)}
    for layer in range(NUM_LAYERS):
        for expert in range(5):
            expected[f"model.layers.{layer}.mlp.experts.gate_up_proj.{expert}"] = (48, 16)
            expected[f"model.layers.{layer}.mlp.experts.down_proj.{expert}"] = (16, 24)
    assert {name: matrix.shape for name, matrix in found.items()} == expected
    matrix = found["model.layers.1.mlp.experts.down_proj.3"]
    stored = model.get_parameter(matrix.parameter)
    assert torch.equal(matrix.part_of(stored), model.model.layers[1].mlp.experts.down_proj[3])


def _with_experts_forward(function) -> nn.Module:
    model = _experts("mixtral")
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.__class__ = type("Odd", (type(experts),), {"forward": function})
    return model


def test_experts_that_compute_something_else_are_refused_by_name():
    def forward(self, x, index, weights):
        return 2 * super(type(self), self).forward(x, index, weights)

    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts is a \S+Odd with gate_up_proj \[5, 48, 16\]"):
        find_weight_matrices(_with_experts_forward(forward))


def test_experts_of_another_layout_are_refused_by_name():
    with pytest.raises(ValueError, match=r"layers\.0\.feed_forward\.experts is a \S+Llama4TextExperts with"):
        find_weight_matrices(tiny("llama4_text", **LLAMA_SIZES))


class Router(nn.Module):
    """Logits first; weights from the logits, or from another product of the same weight."""

    def __init__(self, *, recomputes: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 16))
        self.recomputes = recomputes

    def forward(self, x):
        logits = x @ self.weight.T
        return logits, torch.softmax(x @ self.weight.T if self.recomputes else logits, dim=-1)


def test_a_router_counts_only_if_all_it_returns_comes_from_its_logits():
    model = tiny("llama", **LLAMA_SIZES)
    model.model.layers[1].mlp.up_proj = Router(recomputes=False)
    assert "model.layers.1.mlp.up_proj.weight" in {matrix.name for matrix in find_weight_matrices(model)}
    model.model.layers[1].mlp.up_proj = Router(recomputes=True)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj is a \S+Router with weight \[24, 16\]"):
        find_weight_matrices(model)


@pytest.mark.parametrize("family", ["mamba", "t5"])
def test_a_model_that_is_no_decoder_only_transformer_is_refused(family):
    if family == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        model = T5ForConditionalGeneration(
            T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        )
    else:
        model = tiny("mamba", state_size=4)
    with pytest.raises(ValueError, match=r"decoder-only|Mamba"):
        find_weight_matrices(model)


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class RewrittenLinear(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


def _with_down_projection(module: nn.Module) -> nn.Module:
    model = tiny("llama", **LLAMA_SIZES)
    model.model.layers[1].mlp.down_proj = module
    return model


def test_a_subclass_of_linear_counts_only_if_it_computes_the_linear_map():
    found = find_weight_matrices(_with_down_projection(RewrittenLinear(24, 16)))
    assert "model.layers.1.mlp.down_proj.weight" in {matrix.name for matrix in found}
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj is a \S+ScaledLinear with weight \[16, 24\]"):
        find_weight_matrices(_with_down_projection(ScaledLinear(24, 16)))


def test_an_integer_weight_is_refused():
    linear = nn.Linear(24, 16)
    linear.weight = nn.Parameter(torch.zeros(16, 24, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="unquantised"):
        find_weight_matrices(_with_down_projection(linear))


def test_another_list_of_as_many_modules_is_not_taken_for_the_layers():
    model = tiny("llama", **LLAMA_SIZES)
    expected = find_weight_matrices(model)
    model.exits = nn.ModuleList(nn.Sequential(nn.Linear(16, 16)) for _ in range(NUM_LAYERS))
    assert find_weight_matrices(model) == expected
    model.other = tiny("llama", **LLAMA_SIZES).model
    with pytest.raises(ValueError, match=r"has 2 lists of .* \(model\.layers, other\.layers\), expected exactly one"):
        find_weight_matrices(model)


def test_a_matrix_that_the_layer_itself_owns_is_refused():
    model = tiny("llama", **LLAMA_SIZES)
    model.model.layers[2].mixing = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"model\.layers\.2 is a \S+LlamaDecoderLayer with mixing \[3, 3\]"):
        find_weight_matrices(model)


def test_a_weight_shared_by_two_layers_is_refused():
    model = tiny("llama", **LLAMA_SIZES)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj shares its weight with \S+\.0\.mlp\.up_proj"):
        find_weight_matrices(model)


def test_a_model_without_a_config_is_refused():
    with pytest.raises(ValueError, match="AutoModelForCausalLM"):
        find_weight_matrices(nn.Linear(2, 2))


def _decoder(num_layers: int) -> list[WeightMatrix]:
    return [
        WeightMatrix(f"h.{layer}.{kind}.weight", f"h.{layer}.{kind}", kind, layer, (2, 2), False)
        for layer in range(num_layers)
        for kind in ("attention", "mlp")
    ]


@pytest.mark.parametrize(("num_layers", "num_groups"), [(1, 8), (7, 8), (8, 8), (12, 8), (30, 8), (24, 1), (5, 3)])
def test_blocks_are_contiguous_groups_as_equal_as_possible(num_layers, num_groups):
    blocks = assign_blocks(_decoder(num_layers), num_layer_groups=num_groups)
    for kind in ("attention", "mlp"):
        groups = [[w.layer for w in members] for name, members in blocks.items() if name.startswith(f"{kind}.")]
        assert [layer for group in groups for layer in group] == list(range(num_layers))
        assert len(groups) == min(num_groups, num_layers)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
        assert all(w.kind == kind for name, members in blocks.items() if name.startswith(kind) for w in members)


def test_block_names_have_two_digits_and_start_with_the_kind():
    assert list(assign_blocks(_decoder(2), num_layer_groups=2)) == ["attention.00", "mlp.00", "attention.01", "mlp.01"]


def test_no_group_at_all_is_refused():
    with pytest.raises(ValueError, match="num_layer_groups is 0"):
        assign_blocks(_decoder(2), num_layer_groups=0)
