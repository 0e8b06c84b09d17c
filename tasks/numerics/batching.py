"""Windows and batches: which tokens of which document go through the model together. Integers only.

A window is at most ``context`` tokens. Windows of a long document overlap by one token, which is context and not
target in the later one, so every token but the document's first is predicted exactly once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray


class Window(NamedTuple):
    """Tokens [start, stop) of one document."""

    document: int
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


def windows(num_tokens: Sequence[int], *, context: int) -> list[Window]:
    """Cut documents of the given lengths into windows of at most ``context`` tokens.

    Raises:
        ValueError: ``context`` leaves no room for a token and the one that predicts it.
    """
    if context < 2:
        raise ValueError(f"context is {context} tokens; a prediction needs at least 2")
    return [
        Window(document, start, min(start + context, length))
        for document, length in enumerate(num_tokens)
        for start in range(0, max(length - 1, 1), context - 1)
    ]


def batches(cut: Sequence[Window], *, token_budget: int) -> Iterator[list[Window]]:
    """Group windows of similar length so that rows × longest window stays within the budget; longest first.

    A window longer than the budget is a batch of its own: it must run, and the first batch then shows whether it fits.
    """
    ordered = sorted(cut, key=lambda window: (-window.num_tokens, window))
    start = 0
    while start < len(ordered):
        size = max(1, token_budget // ordered[start].num_tokens)
        yield ordered[start : start + size]
        start += size


Targets = int | Bool[ndarray, " _"]  # index of the first token whose loss counts, or which tokens' losses count


def has_target(window: Window, targets: Targets) -> bool:
    """Whether the loss of any token of a window counts."""
    if isinstance(targets, ndarray):
        return bool(targets[window.start + 1 : window.stop].any())
    return window.stop > targets


def pad(
    batch: Sequence[Window], sequences: Sequence[Sequence[int]], first_targets: Sequence[Targets]
) -> tuple[Int[ndarray, "b t"], Bool[ndarray, "b t"]]:
    """Return token ids, padded on the right with 0, and which tokens' losses count.

    Args:
        batch: Windows of the sequences.
        sequences: Token ids of whole documents.
        first_targets: Per document, index of the first token whose loss counts, all later ones counting too, or a mask
            of those that count; but for the first of a window, which is predicted from nothing there.
    """
    longest = max(window.num_tokens for window in batch)
    tokens = np.zeros((len(batch), longest), dtype=np.int64)
    chosen = np.zeros((len(batch), longest), dtype=bool)
    for row, (document, start, stop) in enumerate(batch):
        tokens[row, : stop - start] = sequences[document][start:stop]
        targets = first_targets[document]
        is_mask = isinstance(targets, ndarray)
        chosen[row, 1 : stop - start] = targets[start + 1 : stop] if is_mask else np.arange(start + 1, stop) >= targets
    return tokens, chosen
