"""The shares of predicted tokens, against a gradient for each token alone, taken by autograd in float64."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from trackstar.tasks.numerics.architecture import assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.gradients import BlockProjection, MatrixProjection
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens, direction

# of the largest share; a Llama's and a Mixtral's norms compute in float32 whatever the precision of the model
FLOAT64_ROUNDING = {"gpt2": 1e-10, "llama": 5e-6, "mixtral": 5e-6}
FLOAT32_ROUNDING = 2e-4

SIZES = {"vocab_size": 61, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
    "mixtral": MixtralConfig(**WIDE, num_local_experts=4),
}


def model_of(family, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).to(dtype)
    model.set_experts_implementation("eager")
    return model.eval().requires_grad_(False)


def projected(matrix, kind, generator):
    m, n = matrix.shape
    left, right = torch.randn(5, m, generator=generator), torch.randn(5, n, generator=generator)
    scale = torch.rand(m, n, generator=generator) + 0.5
    options = {
        "folded": {"left": left, "right": right},
        "formed": {"left": left, "right": right, "scale": scale},
        "whole": {"scale": scale},
    }
    return MatrixProjection(matrix.module, matrix.shape, **options[kind])


def case(family, kind, is_pooled, dtype):
    model, generator = model_of(family, dtype), torch.Generator().manual_seed(1)
    matrices = assign_blocks(find_weight_matrices(model), num_layer_groups=2)
    blocks = {
        name: BlockProjection([projected(matrix, kind, generator) for matrix in members], is_pooled)
        for name, members in matrices.items()
    }
    readout = {name: torch.randn(block.num_dims, generator=generator).double() for name, block in blocks.items()}
    tokens, chosen = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.bool)
    for row, length in enumerate((9, 5)):
        tokens[row, :length] = torch.randint(3, 61, (length,), generator=generator)
        chosen[row, 1:length] = True
    return model, matrices, blocks, readout, tokens, chosen


def naive_shares(model, matrices, blocks, readout, tokens):
    """<φ_t, w> with φ_t = P (∇ loss_t / √V), one token's gradient after the other."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    parameters = dict(model.named_parameters())
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    shares = [0.0]
    for t in range(1, len(tokens)):
        loss = -torch.log_softmax(logits[t - 1], -1)[tokens[t]]
        used = sorted({matrix.parameter for members in matrices.values() for matrix in members})
        gradients = torch.autograd.grad(loss, [parameters[name] for name in used], retain_graph=True, allow_unused=True)
        by_name = dict(zip(used, gradients, strict=True))
        share = 0.0
        for name, block in blocks.items():
            for matrix, projection, place in zip(matrices[name], block.matrices, block.slices(), strict=True):
                if by_name[matrix.parameter] is None:
                    continue
                G = matrix.part_of(by_name[matrix.parameter])
                if projection.scale is not None:
                    G = G * projection.scale.double()
                if projection.left is not None:
                    G = projection.left.double() @ G @ projection.right.double().T
                share += float(G.flatten() @ readout[name][place])
        shares.append(share)
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("family", "kind", "is_pooled"),
    [
        ("llama", "folded", True),
        ("llama", "formed", False),
        ("gpt2", "folded", False),
        ("gpt2", "formed", True),
        ("gpt2", "whole", False),
        ("mixtral", "folded", False),
    ],
)
def test_a_predicted_tokens_share_is_the_product_with_its_own_gradient(family, kind, is_pooled, dtype):
    model, matrices, blocks, readout, tokens, chosen = case(family, kind, is_pooled, dtype)
    shares = PredictedTokens(model, matrices, blocks)(tokens, chosen, readout)
    for row, length in enumerate((9, 5)):
        expected = naive_shares(model, matrices, blocks, readout, tokens[row, :length])
        largest = expected.abs().max().item()
        rounding = FLOAT64_ROUNDING[family] if dtype == torch.float64 else FLOAT32_ROUNDING
        torch.testing.assert_close(shares[row, :length], expected, rtol=0, atol=rounding * largest)
        assert not shares[row, length:].any()  # padding has none


def test_only_chosen_tokens_have_a_share_and_the_model_is_left_as_it_was():
    model, matrices, blocks, readout, tokens, chosen = case("llama", "folded", True, torch.float32)
    before = model(input_ids=tokens, use_cache=False).logits
    chosen[:, :4] = False
    shares = PredictedTokens(model, matrices, blocks)(tokens, chosen, readout)
    assert not shares[~chosen].any()
    assert shares[chosen].all()
    torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["folded", "formed", "whole"])
def test_the_direction_in_weight_space_reads_a_gradient_as_the_readout_reads_its_projection(kind):
    model, generator = model_of("llama", torch.float64), torch.Generator().manual_seed(2)
    matrix = find_weight_matrices(model)[0]
    projection = projected(matrix, kind, generator)
    G = torch.randn(matrix.shape, generator=generator).double()
    w = torch.randn(projection.num_dims, generator=generator).double()
    scaled = G if projection.scale is None else G * projection.scale.double()
    phi = scaled if projection.left is None else projection.left.double() @ scaled @ projection.right.double().T
    torch.testing.assert_close((G * direction(projection, w)).sum(), phi.flatten() @ w)


@pytest.mark.parametrize("kind", ["whole", "scaled", "turned", "projected", "projected and turned", "axes"])
def test_a_direction_reads_a_gradient_as_its_projection_does(kind):
    m, n, p, q = 4, 5, 3, 2
    draw = torch.Generator().manual_seed(0)
    G, S, U, W, L, R = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((m, n), (m, n), (m, m), (n, n), (p, m), (q, n))
    )
    axes, axis_scales = torch.tensor([1, 4]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    fields, phi = {
        "whole": ({}, G),
        "scaled": ({"scale": S}, G * S),
        "turned": ({"scale": S, "left_turn": U, "right_turn": W}, (U @ G @ W.T) * S),
        "projected": ({"left": L, "right": R}, L @ G @ R.T),
        "projected and turned": (
            {"left": L, "right": R, "scale": S, "left_turn": U, "right_turn": W},
            L @ ((U @ G @ W.T) * S) @ R.T,
        ),
        "axes": (
            {"left": L, "right": R, "axes": axes, "axis_scales": axis_scales},
            (L @ G @ R.T).flatten()[axes] * axis_scales,
        ),
    }[kind]
    w = torch.randn(phi.numel(), generator=draw, dtype=torch.float64)
    found = direction(MatrixProjection("module", (m, n), **fields), w)
    torch.testing.assert_close((found * G).sum(), (phi.flatten() * w).sum())
