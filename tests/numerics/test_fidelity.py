"""What rounding does to scores, against loops over pairs."""

import numpy as np
import pytest

from trackstar.storage.gradients import as_stored
from trackstar.tasks.numerics.fidelity import fidelity


def _vectors(num_rows=12):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4, 20))
    return {
        "a": (rng.normal(size=(num_rows, 4)) @ common).astype(np.float32),
        "b": (1e-6 * rng.normal(size=(num_rows, 9))).astype(np.float32),
    }


def _score(query, document, scales):
    q, m = (np.concatenate([of[block] / scales[block] for block in scales]) for of in (query, document))
    return q @ m / np.linalg.norm(q) / np.linalg.norm(m)


@pytest.mark.parametrize("code", ["float16", "int8", "sign"])
def test_overlap_and_correlation_are_those_of_all_pairs(code):
    exact = {block: rows.astype(np.float64) for block, rows in _vectors().items()}
    stored = as_stored(_vectors(), code)
    scales = {block: np.sqrt(np.mean(rows**2)) for block, rows in exact.items()}
    overlaps, correlations = fidelity(exact, stored, top_k=3)
    for query in range(12):
        asked = {block: rows[query] for block, rows in exact.items()}
        others = [m for m in range(12) if m != query]
        before, after = (
            np.array([_score(asked, {block: rows[m] for block, rows in of.items()}, scales) for m in others])
            for of in (exact, stored)
        )
        best, kept = (set(np.argsort(scores)[-3:]) for scores in (before, after))
        assert overlaps[query] == pytest.approx(len(best & kept) / 3)
        assert correlations[query] == pytest.approx(np.corrcoef(before, after)[0, 1])


def test_vectors_that_are_not_rounded_lose_nothing_and_few_have_no_best_ten():
    overlaps, correlations = fidelity(_vectors(5), _vectors(5), top_k=10)
    assert overlaps.tolist() == correlations.tolist() == [1.0] * 5
    with pytest.raises(ValueError, match="2 documents are no sample; take at least three"):
        fidelity(_vectors(2), _vectors(2), top_k=10)
