"""Labels drawn from the model: their distribution, and what they depend on."""

import numpy as np
import torch

from trackstar.tasks.numerics.batching import Window
from trackstar.tasks.numerics.labels import sampled_labels

SIZE, LENGTH = 6, 20_000


def draw(batch, sequences, logits, *, seed=0):
    """Labels of positions 1, 2, … of every row, each from the same logits."""
    places = torch.tensor([(row, position) for row, w in enumerate(batch) for position in range(1, w.num_tokens)])
    return sampled_labels(batch, sequences, seed=seed)(logits.expand(len(places), -1), places).tolist()


def test_labels_have_the_probabilities_of_the_model():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -8.0, 0.5])
    labels = draw([Window(0, 0, LENGTH + 1)], [list(range(LENGTH + 1))], logits)
    frequencies = np.bincount(labels, minlength=SIZE) / LENGTH
    p = torch.softmax(logits, 0).numpy()
    np.testing.assert_array_less(abs(frequencies - p), 5 * np.sqrt(p * (1 - p) / LENGTH) + 1e-9)


def test_a_label_depends_on_seed_document_and_position_alone():
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    sequences = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 10, 11, 13]]
    whole = [Window(0, 0, 8), Window(1, 0, 8)]
    one, other = np.array_split(draw(whole, sequences, logits), 2)
    assert draw(whole[::-1], sequences, logits) == [*other, *one]
    assert draw([whole[0]], sequences, logits) == list(one)
    assert draw([Window(0, 3, 8)], sequences, logits) == list(one[3:])  # of a later window, the same positions
    assert list(one) != list(other)
    assert draw(whole, sequences, logits) != draw(whole, sequences, logits, seed=1)
