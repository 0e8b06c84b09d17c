"""Top k by partition and by merging parts, against a plain stable sort of everything."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.tasks.numerics import ranking

# few distinct values, so that ties are everywhere
scores_of_one_query = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


def _stable_sort(values, *, largest):
    return sorted(range(len(values)), key=lambda index: (-values[index] if largest else values[index], index))


@settings(deadline=None, max_examples=100)
@given(values=scores_of_one_query, top_k=st.integers(1, 40), largest=st.booleans())
def test_top_indices_equal_a_stable_sort(values, top_k, largest):
    array = np.array(values, dtype=np.float64)
    expected = _stable_sort(values, largest=largest)[:top_k]
    assert ranking.top_indices(array, top_k=top_k, largest=largest).tolist() == expected


@settings(deadline=None, max_examples=100)
@given(
    values=scores_of_one_query,
    cuts=st.lists(st.integers(0, 30), max_size=5),
    top_k=st.one_of(st.none(), st.integers(1, 10)),
    largest=st.booleans(),
    split=st.integers(0, 6),
)
def test_merging_parts_in_any_grouping_equals_ranking_the_whole(values, cuts, top_k, largest, split):
    table = np.array([values, values[::-1]], dtype=np.float64)
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [
        ranking.best(table[:, start:stop], np.arange(start, stop), top_k=top_k, largest=largest)
        for start, stop in itertools.pairwise(bounds)
    ]
    groups = [group for group in (parts[:split], parts[split:]) if group]
    merged = ranking.merge(
        [ranking.merge(group, top_k=top_k, largest=largest) for group in groups], top_k=top_k, largest=largest
    )
    for row, found, positions in zip(table, merged.scores, merged.positions, strict=True):
        expected = _stable_sort(row.tolist(), largest=largest)[:top_k]
        assert positions.tolist() == expected
        assert found.tolist() == row[expected].tolist()
