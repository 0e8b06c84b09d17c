import pytest
import torch
from torch.nn.functional import cross_entropy

from trackstar.tasks.mnist import mlp

EXACT = 1e-10  # both sides in float64, a few hundred additions


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    parameters = mlp.initial_parameters(6, num_hidden=5, num_classes=4, generator=generator)
    parameters = {name: (value + 0.1).double() for name, value in parameters.items()}  # biases away from zero
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    return parameters, x, torch.randint(0, 4, (9,), generator=generator)


def flat_loss(flat, parameters, x, y):
    leaves, start = {}, 0
    for name, value in parameters.items():
        leaves[name] = flat[start : start + value.numel()].view_as(value)
        start += value.numel()
    return cross_entropy(mlp.logits(leaves, x), y)


def flatten(values):
    return torch.cat([value.flatten() for value in values.values()])


def test_each_example_gradient_is_that_of_autograd_on_the_example_alone(model):
    parameters, x, y = model
    gradients = mlp.example_gradients(parameters, x, y)
    for i in range(len(x)):
        expected = torch.func.grad(flat_loss)(flatten(parameters), parameters, x[i : i + 1], y[i : i + 1])
        found = flatten({name: gradient[i] for name, gradient in gradients.items()})
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_projected_hessian_is_the_dense_hessian_between_the_directions(model):
    parameters, x, y = model
    H = torch.autograd.functional.hessian(lambda flat: flat_loss(flat, parameters, x, y), flatten(parameters))
    generator = torch.Generator().manual_seed(1)
    rows = {
        name: torch.randn(7, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in parameters.items()
    }
    A = torch.cat([row.flatten(1) for row in rows.values()], dim=1)
    found = mlp.projected_hessian(parameters, x, y, directions=rows)
    torch.testing.assert_close(found, A @ H @ A.T, rtol=EXACT, atol=EXACT)


def test_training_lowers_the_loss_and_leaves_adams_own_second_moment():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    parameters = mlp.initial_parameters(6, num_hidden=5, num_classes=2, generator=generator)
    before = cross_entropy(mlp.logits(parameters, x), y).item()
    schedule = mlp.Schedule(num_steps=1, batch_size=200, learning_rate=0.01)
    mean = {name: g.mean(0) for name, g in mlp.example_gradients(parameters, x, y).items()}
    [(step, V)] = list(mlp.adam_steps(parameters, x, y, schedule=schedule, generator=generator))
    assert step == 1
    for name, gradient in mean.items():  # the first step of β₂ = 0.999
        torch.testing.assert_close(V[name], 0.001 * gradient**2, rtol=1e-3, atol=1e-9)
    assert cross_entropy(mlp.logits(parameters, x), y).item() < before
    assert not any(value.requires_grad for value in parameters.values())
