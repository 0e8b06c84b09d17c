import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trackstar.tasks.numerics import kronecker
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.influence import CurvedLoss, conjugate_gradients
from trackstar.tasks.numerics.kronecker import Eigenbasis, KroneckerPreconditioner, eigenbases

TOKENS = torch.tensor([[3, 5, 7, 9, 2], [4, 6, 8, 0, 0], [1, 2, 3, 4, 0]])
CHOSEN = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
MEAN, DAMPING = 0.3, 0.05


def gpt2():
    """Its matrices are stored [in out]."""
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_inner=12, n_layer=1, n_head=2, vocab_size=11, n_positions=16, **no_dropout)
    )


def llama():
    """Its matrices are stored [out in]."""
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, max_position_embeddings=16, **shape))


@pytest.fixture(params=[gpt2, llama])
def model(request):
    torch.manual_seed(0)
    return request.param().double().eval()


def factors(model, module):
    """A and S of one module from its inputs and outputs, one document at a time by plain autograd."""
    A, S, seen = 0.0, 0.0, {}
    handle = model.get_submodule(module).register_forward_hook(lambda _, inputs, y: seen.update(x=inputs[0], y=y))
    model.requires_grad_(True)
    for tokens, chosen in zip(TOKENS, CHOSEN, strict=True):
        num_tokens = int(chosen.nonzero().max()) + 1
        log_p = model(input_ids=tokens[None, :num_tokens], use_cache=False).logits[0].log_softmax(-1)
        loss = -sum(log_p[t - 1, tokens[t]] for t in range(1, num_tokens))
        (delta,) = torch.autograd.grad(loss, seen["y"])
        x, delta = seen["x"][0, :-1].detach(), delta[0, :-1]  # nothing depends on the last token
        A, S = A + x.T @ x, S + delta.T @ delta
    handle.remove()
    return A, S


def test_the_preconditioner_is_the_inverse_of_the_damped_kronecker_products(model):
    matrices = find_weight_matrices(model)
    pairs = [factors(model, matrix.module) for matrix in matrices]
    dense = [
        torch.kron(*((A, S) if matrix.transposed else (S, A))) for matrix, (A, S) in zip(matrices, pairs, strict=True)
    ]
    H = torch.block_diag(*dense)
    H *= MEAN * len(H) / torch.trace(H)
    vectors = torch.randn(3, len(H), dtype=torch.float64)
    expected = torch.linalg.solve(H + DAMPING * torch.eye(len(H), dtype=torch.float64), vectors.T).T
    bases = eigenbases(model, matrices, [(TOKENS, CHOSEN)])
    found = KroneckerPreconditioner(bases, mean_eigenvalue=MEAN, damping=DAMPING)(vectors)
    # The norms of a Llama compute in float32 whatever its precision.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_zero_but_for_rounding_changes_no_factor(model, monkeypatch):
    matrices = find_weight_matrices(model)
    exact = eigenbases(model, matrices, [(TOKENS, CHOSEN)])
    receive = kronecker._FactorTap.receive
    monkeypatch.setattr(
        kronecker._FactorTap, "receive", lambda tap, x, delta: receive(tap, x, torch.where(delta == 0, 1e-20, delta))
    )
    for found, expected in zip(eigenbases(model, matrices, [(TOKENS, CHOSEN)]), exact, strict=True):
        # float64 eigenvalues of both, of which the largest decides what is rounding
        atol = 1e-12 * expected.eigenvalues.max()
        torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=atol)


def test_padding_changes_no_factor(model):
    matrices = find_weight_matrices(model)
    wider = [torch.nn.functional.pad(part, (0, 3)) for part in (TOKENS, CHOSEN)]
    found, expected = (eigenbases(model, matrices, [tuple(batch)]) for batch in (wider, (TOKENS, CHOSEN)))
    for padded, plain in zip(found, expected, strict=True):
        # the norms of a Llama compute in float32
        atol = 1e-5 * plain.eigenvalues.max()
        torch.testing.assert_close(padded.eigenvalues, plain.eigenvalues, rtol=1e-5, atol=atol)


def test_a_solve_with_it_ends_where_one_without_ends(model):
    matrices = find_weight_matrices(model)
    loss, bases = (
        CurvedLoss(model, [matrix.name for matrix in matrices]),
        eigenbases(model, matrices, [(TOKENS, CHOSEN)]),
    )
    model.set_attn_implementation("eager")
    right_sides = loss.gradients((TOKENS, CHOSEN))

    def product(vectors):
        return loss.gauss_newton_product((TOKENS, CHOSEN), vectors) + DAMPING * vectors

    settings = {"tolerance": 1e-8, "max_iterations": 500}
    plain, _ = conjugate_gradients(product, right_sides, **settings)
    precondition = KroneckerPreconditioner(bases, mean_eigenvalue=MEAN, damping=DAMPING)
    found, _ = conjugate_gradients(product, right_sides, precondition=precondition, **settings)
    # Residuals of 1e-8, and rounding of products that are float32 in places, divided by the damping.
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * plain.abs().max())


def test_where_curvature_is_a_kronecker_product_the_solve_takes_one_iteration():
    generator = torch.Generator().manual_seed(1)
    S, A = (root @ root.T for root in torch.randn(2, 6, 6, generator=generator, dtype=torch.float64))
    (s, U_S), (a, U_A) = torch.linalg.eigh(S), torch.linalg.eigh(A)
    mean = float(torch.trace(S) * torch.trace(A) / 36)
    precondition = KroneckerPreconditioner(
        [Eigenbasis(U_S, U_A, torch.outer(s, a))], mean_eigenvalue=mean, damping=DAMPING
    )
    H = torch.kron(S, A) + DAMPING * torch.eye(36, dtype=torch.float64)
    right_sides = torch.randn(2, 36, generator=generator, dtype=torch.float64)
    settings = {"tolerance": 1e-9, "max_iterations": 500}
    _, without = conjugate_gradients(lambda v: v @ H, right_sides, **settings)
    _, with_it = conjugate_gradients(lambda v: v @ H, right_sides, precondition=precondition, **settings)
    assert with_it == 1 < without
