"""Which directions two symmetric matrices agree on.

R, H  [d d]  symmetric          U_r(·)  [d r]  eigenvectors of the r eigenvalues largest in magnitude
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy import ndarray


def leading_eigenvectors(R: Float[ndarray, "d d"], *, num_directions: int) -> Float[ndarray, "d r"]:
    """Return U_r(R), largest magnitude first."""
    values, vectors = np.linalg.eigh(R)
    return vectors[:, np.argsort(-np.abs(values), kind="stable")[:num_directions]]


def principal_angles(
    R: Float[ndarray, "d d"], H: Float[ndarray, "d d"], *, num_directions: int
) -> Float[ndarray, " r"]:
    """Return the angles between the spans of U_r(R) and U_r(H) in degrees, smallest first: 0 is shared, 90 foreign."""
    pair = (leading_eigenvectors(matrix, num_directions=num_directions) for matrix in (R, H))
    return np.rad2deg(scipy.linalg.subspace_angles(*pair)[::-1])


def magnitude(H: Float[ndarray, "d d"]) -> Float[ndarray, "d d"]:
    """Return |H|, whose eigenvalues are the absolute values of H's: positive semi-definite, the same directions."""
    values, vectors = np.linalg.eigh(H)
    return (vectors * np.abs(values)) @ vectors.T
