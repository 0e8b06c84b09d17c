import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.influence import CurvedLoss, conjugate_gradients, mean_eigenvalue

TOKENS = torch.tensor([[3, 5, 7, 9, 2], [4, 6, 8, 0, 0], [1, 2, 3, 4, 0]])
CHOSEN = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
BATCH = (TOKENS, CHOSEN)
TOLERANCE = 1e-3  # the finest that a solve in float32 is allowed


@pytest.fixture(scope="module")
def model():
    """A GPT-2, which is float64 throughout; the norms of a Llama compute in float32 whatever its precision."""
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(n_embd=8, n_inner=12, n_layer=1, n_head=2, vocab_size=11, n_positions=16, **no_dropout)
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def names(model):
    return [matrix.name for matrix in find_weight_matrices(model)]


@pytest.fixture(scope="module")
def dense(model, names):
    """Gradients [b D] and the Gauss-Newton matrix [D D], one logit and one token at a time by plain autograd."""
    model.requires_grad_(True)
    parameters = [model.get_parameter(name) for name in names]

    def flat(value):
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])

    gradients, matrix = [], 0.0
    for tokens, chosen in zip(TOKENS, CHOSEN, strict=True):
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        loss = 0.0
        for position in range(1, len(tokens)):
            if chosen[position]:
                z = logits[position - 1]
                loss = loss - torch.log_softmax(z, 0)[tokens[position]]
                J, p = torch.stack([flat(value) for value in z]), torch.softmax(z, 0).detach()
                matrix = matrix + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
        gradients.append(flat(loss))
    model.requires_grad_(False)
    return torch.stack(gradients), matrix


def test_gradients_and_their_products_with_directions_are_those_of_autograd(model, names, dense):
    loss, (gradients, _) = CurvedLoss(model, names), dense
    directions = torch.randn(4, loss.num_parameters, dtype=torch.float64)
    # float64 on both sides
    torch.testing.assert_close(loss.gradients(BATCH), gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.directional(BATCH, directions), gradients @ directions.T, rtol=1e-9, atol=1e-12)


def test_products_are_those_of_the_dense_gauss_newton_matrix(model, names, dense):
    loss, (_, matrix) = CurvedLoss(model, names), dense
    vectors = torch.randn(3, loss.num_parameters, dtype=torch.float64)
    torch.testing.assert_close(loss.gauss_newton_product(BATCH, vectors), vectors @ matrix, rtol=1e-9, atol=1e-12)


def test_solutions_are_those_of_the_dense_damped_system(model, names, dense):
    loss, (gradients, matrix) = CurvedLoss(model, names), dense
    damping = 0.1 * torch.trace(matrix) / len(matrix)

    def product(vectors):
        return loss.gauss_newton_product(BATCH, vectors) + damping * vectors

    found, iterations = conjugate_gradients(product, gradients, tolerance=1e-10, max_iterations=500)
    expected = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), gradients.T).T
    assert 0 < iterations < 500
    # a residual of 1e-10 times the condition number, here below 1e4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max())


def test_rows_are_solved_as_if_each_were_alone():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.normal(size=(20, 20)))
    A = root @ root.T + torch.eye(20, dtype=torch.float64)
    easy, hard = A @ torch.ones(20, dtype=torch.float64) * 1e-8, torch.from_numpy(rng.normal(size=20)) * 1e8
    both, _ = conjugate_gradients(lambda v: v @ A, torch.stack([easy, hard]), tolerance=1e-12, max_iterations=200)
    for row, right_side in zip(both, (easy, hard), strict=True):
        torch.testing.assert_close(row, torch.linalg.solve(A, right_side), rtol=1e-7, atol=0)


def test_a_zero_right_side_has_a_zero_solution():
    found, iterations = conjugate_gradients(lambda v: 2 * v, torch.zeros(2, 3), tolerance=1e-6, max_iterations=5)
    assert (found == 0).all()
    assert iterations == 0


def test_a_solve_that_does_not_converge_is_refused():
    A = torch.diag(torch.logspace(0, 12, 40, dtype=torch.float64))
    with pytest.raises(ValueError, match="raise the damping"):
        conjugate_gradients(lambda v: v @ A, torch.ones(1, 40, dtype=torch.float64), tolerance=1e-8, max_iterations=10)


def test_the_mean_eigenvalue_is_estimated_without_bias():
    rng = np.random.default_rng(1)
    root = torch.from_numpy(rng.normal(size=(30, 30)))
    A = root @ root.T
    estimate = mean_eigenvalue(
        lambda v: v @ A, num_parameters=30, num_probes=4000, generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )  # fmt: skip
    # standard deviation of one probe is √(2 Σ_{i≠j} A_ij²) / D, about a quarter of the mean; of 4,000, 0.4 %
    assert estimate == pytest.approx(torch.trace(A).item() / 30, rel=0.02)


def test_float32_solves_what_float64_does_to_the_tolerance_that_it_is_allowed(model, names):
    wanted = {"tolerance": TOLERANCE, "max_iterations": 500}
    solutions = {}
    for dtype in (torch.float32, torch.float64):
        loss = CurvedLoss(model.to(dtype), names)
        solutions[dtype], _ = conjugate_gradients(
            lambda v, loss=loss: loss.gauss_newton_product(BATCH, v) + 0.01 * v, loss.gradients(BATCH), **wanted
        )
    exact = solutions[torch.float64]
    # Each is within tolerance × ‖b‖ / damping of the solution; the sum of both, with ‖b‖ about 10 × ‖x‖ × damping.
    assert (solutions[torch.float32].double() - exact).norm() < 20 * TOLERANCE * exact.norm()
