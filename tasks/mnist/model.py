"""One small model of the study: its data, its training, and one gradient for every image that takes part."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from trackstar.tasks.mnist import mlp
from trackstar.tasks.mnist.settings import NUM_CHECKPOINTS, StudyConfig
from trackstar.tasks.numerics.second_moment import FullSecondMoment

Variant = Literal["clean", "noisy"]
VARIANTS: tuple[Variant, ...] = ("clean", "noisy")
NUM_CLASSES = 10
EVAL_FRACTION = 0.2


@dataclass(frozen=True)
class Fitted:
    """A trained model and the images that take part in the tests.

    Attributes:
        second_moment: Adam's V at the end of training.
        accuracies: (step, share of the evaluation images that are classified correctly) in the course of training.
        candidates: Inputs of the training images that are scored.
        wrong: For each candidate a label that is not its own, uniformly drawn.
        queries: Inputs of the evaluation images.
    """

    parameters: mlp.Parameters
    second_moment: dict[str, FullSecondMoment]
    accuracies: list[tuple[int, float]]
    candidates: Tensor
    labels: Tensor
    wrong: Tensor
    queries: Tensor
    query_labels: Tensor

    def gradients(self) -> tuple[mlp.Gradients, mlp.Gradients, mlp.Gradients]:
        """Of the queries, of the candidates, and of the candidates with the wrong label."""
        return (
            mlp.example_gradients(self.parameters, self.queries, self.query_labels),
            mlp.example_gradients(self.parameters, self.candidates, self.labels),
            mlp.example_gradients(self.parameters, self.candidates, self.wrong),
        )


def fit(brightness: ndarray, labels: ndarray, *, variant: Variant, seed: int, config: StudyConfig) -> Fitted:
    """Split, train, sample: everything drawn from one seed, and split and sample the same in both variants."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    wrong = (labels[order] + generator.integers(1, NUM_CLASSES, size=len(labels))) % NUM_CLASSES
    inputs = brightness.reshape(len(labels), -1)[order]
    if variant == "noisy":
        nuisances = generator.normal(0.0, config.nuisance_scale, (len(labels), config.num_nuisances))
        inputs = np.concatenate([inputs, nuisances.astype(np.float32)], axis=1)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels[order])
    num_train = len(y) - round(EVAL_FRACTION * len(y))
    parameters, V, accuracies = _train(x, y, num_train=num_train, seed=seed, config=config)
    candidates = slice(0, min(config.num_candidates, num_train))
    queries = slice(num_train, num_train + config.num_queries)
    return Fitted(
        parameters=parameters,
        second_moment={name: FullSecondMoment(values) for name, values in V.items()},
        accuracies=accuracies,
        candidates=x[candidates],
        labels=y[candidates],
        wrong=torch.from_numpy(wrong)[candidates],
        queries=x[queries],
        query_labels=y[queries],
    )


def _train(
    x: Tensor, y: Tensor, *, num_train: int, seed: int, config: StudyConfig
) -> tuple[mlp.Parameters, dict[str, Tensor], list[tuple[int, float]]]:
    generator = torch.Generator().manual_seed(seed)
    parameters = mlp.initial_parameters(
        x.shape[1], num_hidden=config.num_hidden, num_classes=NUM_CLASSES, generator=generator
    )
    schedule = mlp.Schedule(config.num_steps, config.batch_size, config.learning_rate)
    accuracies, V = [(0, mlp.accuracy(parameters, x[num_train:], y[num_train:]))], {}
    steps = mlp.adam_steps(parameters, x[:num_train], y[:num_train], schedule=schedule, generator=generator)
    for step, V in steps:  # noqa: B007 - the last V is what the optimizer ends with
        if step % (config.num_steps // NUM_CHECKPOINTS) == 0:
            accuracies.append((step, mlp.accuracy(parameters, x[num_train:], y[num_train:])))
    return parameters, V, accuracies
