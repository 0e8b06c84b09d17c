import numpy as np

from trackstar.tasks.reindex.fidelity import cosines


def test_the_cosine_is_that_of_all_blocks_as_one_vector():
    generator = np.random.default_rng(0)
    stored, computed = ({"a": generator.normal(size=(3, 5)), "b": generator.normal(size=(3, 2))} for _ in range(2))
    for row, found in enumerate(cosines(stored, computed)):
        s, g = (np.concatenate([side["a"][row], side["b"][row]]) for side in (stored, computed))
        np.testing.assert_allclose(found, s @ g / np.linalg.norm(s) / np.linalg.norm(g), rtol=1e-12)
