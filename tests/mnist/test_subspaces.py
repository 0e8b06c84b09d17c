import numpy as np

from trackstar.tasks.mnist.subspaces import leading_eigenvectors, magnitude, principal_angles


def symmetric(dims, seed):
    values = np.random.default_rng(seed).standard_normal((dims, dims))
    return values + values.T


def test_a_matrix_shares_every_direction_with_a_multiple_of_itself():
    R = symmetric(12, 0)
    np.testing.assert_allclose(principal_angles(R, -3 * R, num_directions=5), 0, atol=1e-5)  # arccos near 1


def test_angles_are_the_arc_cosines_of_the_singular_values_of_the_overlap():
    R, H = symmetric(12, 1), symmetric(12, 2)
    overlap = leading_eigenvectors(R, num_directions=4).T @ leading_eigenvectors(H, num_directions=4)
    expected = np.rad2deg(np.arccos(np.linalg.svd(overlap, compute_uv=False)))
    np.testing.assert_allclose(principal_angles(R, H, num_directions=4), expected, atol=1e-6)


def test_leading_means_large_in_magnitude_whatever_the_sign():
    np.testing.assert_allclose(
        np.abs(leading_eigenvectors(np.diag([1.0, -5.0, 2.0]), num_directions=1)[:, 0]), [0, 1, 0]
    )


def test_the_square_of_the_magnitude_is_the_square_of_the_matrix():
    H = symmetric(8, 3)
    np.testing.assert_allclose(magnitude(H) @ magnitude(H), H @ H, atol=1e-9)
    assert np.linalg.eigvalsh(magnitude(H)).min() > 0
