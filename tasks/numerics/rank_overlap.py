"""How much two rankings agree, the first ranks counting most.

    S, T   rankings: ids without repetition, best first
    X_d    number of ids that the first d of S and the first d of T share
    p      persistence: the chance that a reader who has seen rank d goes on to rank d + 1

Webber, Moffat and Zobel 2010, "A similarity measure for indefinite rankings".
"""

from collections.abc import Hashable, Sequence


def rank_biased_overlap(S: Sequence[Hashable], T: Sequence[Hashable], *, p: float = 0.9) -> float:
    """Return ``X_k/k pᵏ + (1-p)/p Σ_d X_d/d pᵈ`` for d to k, the depth of the shorter ranking (Eq. 30).

    It is 1 for equal rankings and 0 for rankings without a common id; beyond depth k the agreement X_k/k is assumed
    to go on.

    Raises:
        ValueError: p is not between 0 and 1, a ranking is empty, or an id repeats.
    """
    if not 0 < p < 1:
        raise ValueError(
            f"p is {p}, expected more than 0 and less than 1; 0.9 gives the first ten ranks 86 % of the weight"
        )
    for ranking in (S, T):
        if not ranking or len(set(ranking)) < len(ranking):
            raise ValueError(f"a ranking is {list(ranking)[:5]}…, expected at least one id and none twice")
    total, shared, seen = 0.0, 0, set()
    depth = min(len(S), len(T))
    for d, pair in enumerate(zip(S, T, strict=False), start=1):
        for id in pair:
            shared += id in seen
            seen.add(id)
        total += (1 - p) / p * shared / d * p**d
    return total + shared / depth * p**depth
