"""The hook-based engine against autograd in float64, on random models, projections and second moments."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

from tests import reference
from trackstar.tasks.numerics import architecture, batching
from trackstar.tasks.numerics.corrections.factored_v import estimation_taps
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.loss import token_losses
from trackstar.tasks.numerics.projection import gaussian_projection, orthonormal_projection
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, dense, folded_scales
from trackstar.tasks.numerics.taps import TappedModel

# float32 forward and backward through a few layers against float64
RELATIVE_ERROR = 1e-5

CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, max_position_embeddings=64, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
    "gpt_neox": GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61,
        max_position_embeddings=64,
    ),
    "gemma2": Gemma2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=61, max_position_embeddings=64, sliding_window=16,
    ),
}  # fmt: skip


def _model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).float()


def _sequences(lengths=(9, 4, 7)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 61, (length,), generator=generator) for length in lengths]


def _pad(sequences, first_target=1):
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        chosen[row, first_target : len(sequence)] = True
    return tokens, chosen


def _random_second_moment(matrix):
    generator = torch.Generator().manual_seed(len(matrix.name))
    m, n = matrix.shape
    return FactoredSecondMoment(torch.rand(m, generator=generator) + 0.1, torch.rand(n, generator=generator) + 0.1)


def _projection(matrix, *, kind, k=5):
    left, right = (
        gaussian_projection(seed=0, matrix_name=matrix.name, side=side, projection_dim=k, input_dim=dim)
        for side, dim in zip(("left", "right"), matrix.shape, strict=True)
    )
    V = _random_second_moment(matrix)
    row_scale, column_scale = folded_scales(V, epsilon=0.0)
    options = {
        "folded": {"left": left * row_scale.float(), "right": right * column_scale.float()},
        "formed": {"left": left, "right": right, "scale": dense(V).rsqrt().float()},
        "none": {"scale": dense(V).rsqrt().float()},
    }
    return MatrixProjection(matrix.module, matrix.shape, **options[kind])


def _dense_gradients(model, sequences, first_target=1):
    matrices, model = architecture.find_weight_matrices(model), copy.deepcopy(model)
    return [
        reference.example_gradients(model, matrices, sequence, torch.arange(len(sequence)) >= first_target)
        for sequence in sequences
    ]


def _oracle(gradients, matrices, *, kind, is_pooled, k=5):
    rows = []
    for example in gradients:
        shares = []
        for matrix in matrices:
            corrected = example[matrix.name] / dense(_random_second_moment(matrix)).sqrt()
            if kind != "none":
                left, right = (
                    gaussian_projection(
                        seed=0, matrix_name=matrix.name, side=side, projection_dim=k, input_dim=dim
                    ).double()
                    for side, dim in zip(("left", "right"), matrix.shape, strict=True)
                )
                corrected = left @ corrected @ right.T
            shares.append(corrected.flatten())
        rows.append(sum(shares) if is_pooled else torch.cat(shares))
    return torch.stack(rows)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("kind", "is_pooled"), [("folded", True), ("folded", False), ("formed", True), ("none", False)]
)
def test_projected_gradients_equal_autograd_in_float64(family, kind, is_pooled):
    model = _model(family)
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=2)
    sequences = _sequences()
    projections = {
        name: BlockProjection([_projection(matrix, kind=kind) for matrix in matrices], is_pooled)
        for name, matrices in blocks.items()
    }
    with GradientEngine(copy.deepcopy(model), projections) as engine:
        _, vectors = engine(*_pad(sequences))
    gradients = _dense_gradients(model, sequences)
    for name, matrices in blocks.items():
        expected = _oracle(gradients, matrices, kind=kind, is_pooled=is_pooled)
        error = (vectors[name].double() - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < RELATIVE_ERROR, name


LLAMA_LIKE = ("mistral", "qwen2", "qwen3", "olmo2", "gemma3_text")
FAMILIES = {  # settings beyond SIZES
    **{name: {"head_dim": 8, "num_key_value_heads": 2} for name in LLAMA_LIKE},
    "phi": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "olmoe": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 20,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "qwen2_moe": {
        "num_key_value_heads": 2,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "granitemoe": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        "moe_intermediate_size": 20,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}
EXPERTS = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _family(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**SIZES, **FAMILIES[name])).float()


def _assert_exact(engine_model, oracle_model, *, tolerance=RELATIVE_ERROR, kind="folded"):
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(oracle_model), num_layer_groups=2)
    is_pooled = kind != "none"
    projections = {n: BlockProjection([_projection(m, kind=kind) for m in ms], is_pooled) for n, ms in blocks.items()}
    sequences = _sequences()
    with GradientEngine(engine_model, projections) as engine:
        _, vectors = engine(*_pad(sequences))
    gradients = _dense_gradients(oracle_model, sequences)
    for name, matrices in blocks.items():
        expected = _oracle(gradients, matrices, kind=kind, is_pooled=is_pooled)
        error = (vectors[name].double() - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < tolerance, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_exact_gradients(family):
    model = _family(family)
    _assert_exact(copy.deepcopy(model), model)


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("kind", ["formed", "none"])
def test_fused_experts_have_exact_gradients_where_they_are_formed(family, kind):
    model = _family(family)
    _assert_exact(copy.deepcopy(model), model, kind=kind)


def test_experts_run_as_they_did_once_nothing_is_tapped():
    model = _family("mixtral")
    tokens = _sequences()[0][None]
    before = model(tokens).logits
    _assert_exact(model, copy.deepcopy(model))
    assert torch.equal(model(tokens).logits, before)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_gradient_checkpointing_left_on_changes_nothing():
    model = _model("llama")
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    checkpointed.train()
    _assert_exact(checkpointed, model)


def test_a_bfloat16_model_gives_float32_gradients_that_agree_to_its_rounding():
    model = _model("llama").bfloat16()
    _assert_exact(copy.deepcopy(model), model, tolerance=0.05)  # 8 bits of mantissa, a few roundings a layer


HALF = {torch.float16: 0.02, torch.bfloat16: 0.05}  # 10 and 7 bits of mantissa, a few roundings a layer


def _scaled_projection(matrix, *, kind, root):
    """Of V times root²."""
    plain = _projection(matrix, kind=kind)
    if kind == "folded":
        return replace(plain, right=plain.right / root)
    return replace(plain, scale=plain.scale / root)


def _scaled_blocks(model, *, kind, root):
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=2)
    return {
        name: BlockProjection([_scaled_projection(m, kind=kind, root=root) for m in ms], kind != "none")
        for name, ms in blocks.items()
    }


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["folded", "formed", "none"])
@pytest.mark.parametrize("root", [1.0, 1e-4, 1e-12, 1e8])
def test_a_model_in_half_precision_is_exact_to_its_rounding_however_small_v_is(dtype, kind, root):
    model = _model("llama").to(dtype)
    with GradientEngine(copy.deepcopy(model), _scaled_blocks(model, kind=kind, root=root)) as engine:
        _, vectors = engine(*_pad(_sequences()))
    oracle_model = copy.deepcopy(model).double()
    gradients = _dense_gradients(oracle_model, _sequences())
    for name, matrices in architecture.assign_blocks(
        architecture.find_weight_matrices(model), num_layer_groups=2
    ).items():
        expected = _oracle(gradients, matrices, kind=kind, is_pooled=kind != "none")
        error = (vectors[name].double() * root - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < HALF[dtype], name  # false for NaN


@pytest.mark.parametrize("dtype", HALF)
def test_a_row_that_was_hardly_ever_trained_drowns_no_other_in_half_precision(dtype):
    """Its 1/√V is 10^8 times that of the others, as ε leaves it; its own gradient is zero."""
    model = _model("llama").to(dtype)
    up = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 3] = 0  # nothing comes of the third neuron
    matrix = next(m for m in architecture.find_weight_matrices(model) if m.module.endswith("1.mlp.up_proj"))
    plain = _projection(matrix, kind="folded")
    left = plain.left.clone()
    left[:, 3] *= 1e8
    assert up.weight.shape == matrix.shape
    found = []
    for projection in (plain, replace(plain, left=left)):
        with GradientEngine(copy.deepcopy(model), {"block": BlockProjection([projection], True)}) as engine:
            found.append(engine(*_pad(_sequences()))[1]["block"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5 * found[0].abs().max())


def test_a_query_is_charged_for_its_completion_alone():
    model = _model("llama")
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=1)
    sequences = _sequences((8,))
    projections = {n: BlockProjection([_projection(m, kind="folded") for m in ms], True) for n, ms in blocks.items()}
    with GradientEngine(copy.deepcopy(model), projections) as engine:
        losses, vectors = engine(*_pad(sequences, first_target=5))
    gradients = _dense_gradients(model, sequences, first_target=5)
    for name, matrices in blocks.items():
        expected = _oracle(gradients, matrices, kind="folded", is_pooled=True)
        assert (vectors[name].double() - expected).norm() < RELATIVE_ERROR * expected.norm()
    log_probabilities = torch.log_softmax(model(sequences[0][None]).logits[0], dim=-1)
    expected_loss = -sum(log_probabilities[t - 1, sequences[0][t]] for t in range(5, 8))
    assert losses[0].item() == pytest.approx(expected_loss.item(), rel=1e-5)


def test_neither_padding_nor_company_changes_a_gradient():
    model = _model("llama")
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=2)
    projections = {n: BlockProjection([_projection(m, kind="folded") for m in ms], True) for n, ms in blocks.items()}
    sequences = _sequences((12, 3, 7, 5))
    with GradientEngine(model, projections) as engine:
        _, together = engine(*_pad(sequences))
        for row, sequence in enumerate(sequences):
            _, alone = engine(*_pad([sequence]))
            for name in blocks:
                difference = (alone[name][0] - together[name][row]).norm()
                assert difference < RELATIVE_ERROR * alone[name][0].norm()


@pytest.mark.parametrize("model", [_model("gpt2"), _family("mixtral")], ids=["gpt2", "mixtral"])
def test_the_estimated_second_moment_is_the_mean_squared_gradient_by_row_and_column(model):
    matrices = architecture.find_weight_matrices(model)
    sequences = _sequences()
    taps = estimation_taps(matrices, device=torch.device("cpu"))
    with TappedModel(copy.deepcopy(model), taps) as tapped:
        tapped.backward(*_pad(sequences))
    squares = {matrix.name: 0 for matrix in matrices}
    for gradients in _dense_gradients(model, sequences):
        for name, G in gradients.items():
            squares[name] = squares[name] + G**2 / len(sequences)
    for tap in taps:
        estimated = tap.result(num_examples=len(sequences))
        torch.testing.assert_close(estimated.row, squares[tap.name].mean(1), rtol=1e-4, atol=0)
        torch.testing.assert_close(estimated.column, squares[tap.name].mean(0), rtol=1e-4, atol=0)


def test_projection_depends_on_seed_name_and_side_alone():
    def draw(seed=0, name="a", side="left"):
        return gaussian_projection(seed=seed, matrix_name=name, side=side, projection_dim=64, input_dim=500)

    first = draw()
    torch.manual_seed(5)
    assert torch.equal(first, draw())
    for other in (draw(seed=1), draw(name="b"), draw(side="right")):
        # independent entries N(0, 1/64): the correlation of 32,000 pairs is 0 ± 1/√32000
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 5 / 32_000**0.5
    assert first.var().item() == pytest.approx(1 / 64, rel=0.05)


@pytest.mark.parametrize(("k", "n"), [(16, 50), (48, 50), (60, 50)])
def test_orthonormal_rows_are_orthonormal_and_preserve_products_as_gaussian_ones_do(k, n):
    draw = {"matrix_name": "a", "side": "left", "projection_dim": k, "input_dim": n}
    P = orthonormal_projection(seed=0, **draw).double()
    if k <= n:
        torch.testing.assert_close(P @ P.T, n / k * torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(P.T @ P, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-5)
    products = [(P := orthonormal_projection(seed=seed, **draw)).T @ P for seed in range(400)]
    mean = torch.stack(products).mean(0)
    # an entry of PᵀP deviates by about √(1/k); 400 draws leave a twentieth of that
    torch.testing.assert_close(mean, torch.eye(n), rtol=0, atol=5 / 20 / k**0.5 + 1e-5)


def test_every_token_but_the_first_is_predicted_once_whatever_the_context():
    lengths = [1, 2, 9, 10, 11, 28]
    for context in (2, 5, 10, 64):
        cut = batching.windows(lengths, context=context)
        assert all(window.num_tokens <= context for window in cut)
        for document, length in enumerate(lengths):
            predicted = [t for w in cut if w.document == document for t in range(w.start + 1, w.stop)]
            assert predicted == list(range(1, length))


def test_batches_hold_every_window_once_within_the_token_budget():
    rng = np.random.default_rng(0)
    cut = batching.windows(rng.integers(1, 40, size=100).tolist(), context=16)
    made = list(batching.batches(cut, token_budget=64))
    assert sorted(window for batch in made for window in batch) == sorted(cut)
    assert all(len(batch) * max(w.num_tokens for w in batch) <= 64 for batch in made)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_token_losses_and_their_gradient_equal_autograd_even_for_certain_and_impossible_tokens(dtype, rtol):
    generator = torch.Generator().manual_seed(3)
    logits = (
        torch.randn(6, 40, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 5, 30, 100, 200])[:, None]
    )
    targets = torch.tensor([0, 5, 39, int(logits[3].argmax()), int(logits[4].argmin()), 7])
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    found, found_gradient = token_losses(logits.to(dtype), targets)
    # a loss is the difference of two logits of size 200
    torch.testing.assert_close(found.double(), expected.detach(), rtol=rtol, atol=200 * rtol)
    torch.testing.assert_close(found_gradient.double(), gradient, rtol=100 * rtol, atol=rtol)


def test_a_layer_may_write_into_what_the_first_tapped_layer_returns():
    class Clipped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).clamp_(min=-0.05)

    model = _model("llama")
    attention = model.model.layers[0].self_attn
    attention.q_proj = Clipped(attention.q_proj)
    _assert_exact(copy.deepcopy(model), model)
