"""A score taken apart by token, against what the loss does when the weights move at one token alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from trackstar.tasks.numerics import architecture, curvature, scores
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.token_influence import TokenInfluence, candidate_norms, query_readout

# float32 forward and backward through two layers against float64
RELATIVE_ERROR = 1e-5
NUM_QUERIES = 3

CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, max_position_embeddings=64, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
}  # fmt: skip


MIXTURE = MixtralConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=61, max_position_embeddings=64, num_local_experts=4,
)  # fmt: skip


def _projection(matrix, kind, generator):
    m, n = matrix.shape
    left, right = torch.randn(5, m, generator=generator), torch.randn(5, n, generator=generator)
    scale = torch.rand(m, n, generator=generator) + 0.5
    options = {
        "folded": {"left": left, "right": right},
        "formed": {"left": left, "right": right, "scale": scale},
        "whole": {"scale": scale},
        "plain": {},
        "axes": {"left": left, "right": right, "axes": torch.tensor([0, 7, 8, 24]), "axis_scales": left[0, :4]},
    }
    return MatrixProjection(matrix.module, matrix.shape, **options[kind])


def _dense_readout(projection, readout):
    """A [m n] with <G, A> = <L (G ⊙ S) Rᵀ, W>."""
    W = readout.double()
    if projection.axes is not None:
        W = torch.zeros(25, dtype=torch.float64).scatter(0, projection.axes, W * projection.axis_scales.double())
    A = W.view(projection.shape) if projection.left is None else None
    if A is None:
        A = projection.left.double().T @ W.view(len(projection.left), len(projection.right)) @ projection.right.double()
    return A if projection.scale is None else A * projection.scale.double()


def _loss_slopes(model, tokens, directions):
    """d Loss / d ε_t where every matrix is moved by ε_t A at token t and nowhere else: autograd in float64."""
    model = copy.deepcopy(model).double().eval()
    steps = torch.zeros(len(tokens), dtype=torch.float64, requires_grad=True)

    def moved(A):
        def hook(module, inputs, output):
            return output + steps[:, None] * (inputs[0].reshape((*output.shape[:-1], -1)) @ A.T)

        return hook

    for module, A in directions.items():
        model.get_submodule(module).register_forward_hook(moved(A))
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
    return torch.autograd.grad(loss, steps)[0]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("kind", "is_pooled"),
    [("folded", True), ("folded", False), ("formed", True), ("whole", False), ("plain", False), ("axes", False)],
)
def test_a_tokens_share_is_the_slope_of_the_loss_when_the_weights_move_at_that_token_alone(family, kind, is_pooled):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).float()
    generator = torch.Generator().manual_seed(1)
    blocks = {
        name: BlockProjection([_projection(matrix, kind, generator) for matrix in matrices], is_pooled)
        for name, matrices in architecture.assign_blocks(
            architecture.find_weight_matrices(model), num_layer_groups=2
        ).items()
    }
    readouts = {name: torch.randn(NUM_QUERIES, block.num_dims, generator=generator) for name, block in blocks.items()}
    sequences = [torch.randint(3, 61, (length,), generator=generator) for length in (9, 5)]
    tokens, chosen = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], chosen[row, 1 : len(sequence)] = sequence, True
    with TokenInfluence(copy.deepcopy(model), blocks) as reader:
        shares = reader(tokens, chosen, readouts)
    with GradientEngine(copy.deepcopy(model), blocks) as engine:
        _, vectors = engine(tokens, chosen)
    for query in range(NUM_QUERIES):
        directions = {
            matrix.module: _dense_readout(matrix, readouts[name][query, share])
            for name, block in blocks.items()
            for matrix, share in zip(block.matrices, block.slices(), strict=True)
        }
        products = sum(vectors[name].double() @ readouts[name][query].double() for name in blocks)
        for row, sequence in enumerate(sequences):
            expected = _loss_slopes(model, sequence, directions)
            scale = expected.abs().max()
            torch.testing.assert_close(
                shares[row, : len(sequence), query], expected, rtol=0, atol=RELATIVE_ERROR * scale
            )
            assert not shares[row, len(sequence) :].any()  # padding has none
            # float32 sums of the engine against float64 ones
            assert abs(shares[row, :, query].sum() - products[row]) < 10 * RELATIVE_ERROR * scale * len(sequence)


@pytest.mark.parametrize("mixing_weight", [0.0, 0.7])
@pytest.mark.parametrize("is_whitened", [True, False])
def test_readouts_and_norms_give_the_scores_of_the_low_rank_pass(mixing_weight, is_whitened):
    rng = np.random.default_rng(0)
    candidates, queries = rng.normal(size=(9, 6)), rng.normal(size=(NUM_QUERIES, 6))
    C = curvature.damped_factor(curvature.gram(candidates) / 9, damping=0.1) if is_whitened else None
    basis = scores.query_basis(C, queries)
    psi_norms = curvature.squared_norms(candidates if C is None else curvature.whiten(C, candidates))
    expected = scores.influence(
        [candidates @ basis.readout], psi_norms[:, None], [basis], mixing_weight=mixing_weight, unit_norm=True
    )
    chosen = [2, 0]
    w, query_norms = query_readout(basis, chosen, mixing_weight=mixing_weight)
    norms = candidate_norms(candidates, psi_norms, basis, mixing_weight=mixing_weight)
    found = candidates @ w.T / np.sqrt(np.outer(norms, query_norms))
    np.testing.assert_allclose(found, expected[:, chosen], atol=1e-12)  # float64 on both sides


def test_an_expert_gives_shares_to_the_tokens_it_was_sent_and_in_their_places():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(MIXTURE)).float()
    generator = torch.Generator().manual_seed(1)
    matrices = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=2)
    blocks = {
        n: BlockProjection([_projection(m, "folded", generator) for m in ms], False) for n, ms in matrices.items()
    }
    tokens = torch.randint(3, 61, (2, 9), generator=generator)
    chosen = torch.ones_like(tokens, dtype=torch.bool)
    chosen[:, 0] = False
    routes = {}
    for path, module in model.named_modules():
        if path.endswith("mlp.experts"):
            module.register_forward_pre_hook(lambda _, inputs, path=path: routes.update({path: inputs[1]}))
    with GradientEngine(copy.deepcopy(model), blocks) as engine:
        _, vectors = engine(tokens, chosen)
    with TokenInfluence(model, blocks) as reader:
        for name, block in blocks.items():
            for matrix, share in zip(block.matrices, block.slices(), strict=True):
                readouts = {other: torch.zeros(1, len(vectors[other].T)) for other in blocks}
                readouts[name][:, share] = torch.randn(1, matrix.num_dims, generator=generator)
                shares = reader(tokens, chosen, readouts)[..., 0]
                product = vectors[name].double() @ readouts[name][0].double()
                # float32 sums of the engine against float64 ones
                torch.testing.assert_close(shares.sum(1), product, rtol=1e-4, atol=1e-4 * product.abs().max().item())
                if ".experts." in matrix.module:
                    path, _, expert = matrix.module.rsplit(".", 2)
                    is_sent = (routes[path].view(2, 9, -1) == int(expert)).any(-1)
                    torch.testing.assert_close(shares[:, :-1] != 0, is_sent[:, :-1])  # nothing follows the last token


def test_shares_in_a_float16_model_are_finite_and_add_up_however_small_v_is():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"])).half()
    blocks = architecture.assign_blocks(architecture.find_weight_matrices(model), num_layer_groups=1)
    generator = torch.Generator().manual_seed(1)
    projections = {}
    for name, matrices in blocks.items():
        plain = [_projection(matrix, "folded", generator) for matrix in matrices]
        projections[name] = BlockProjection([replace(p, right=p.right * 1e12) for p in plain], True)
    tokens = torch.randint(3, 61, (1, 9), generator=generator)
    chosen = torch.ones_like(tokens, dtype=torch.bool)
    with GradientEngine(model, projections) as engine:
        _, vectors = engine(tokens, chosen)
    readouts = {name: torch.randn(NUM_QUERIES, rows.shape[1], generator=generator) for name, rows in vectors.items()}
    with TokenInfluence(model, projections) as influence:
        shares = influence(tokens, chosen, readouts)
    expected = sum(vectors[name].double() @ readouts[name].double().T for name in vectors)
    # both from the same float32 projections, summed in another order
    torch.testing.assert_close(shares.sum(1), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
