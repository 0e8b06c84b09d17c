import numpy as np

from trackstar.tasks.mnist.win_rates import right_label_wins, same_class_wins


def test_wins_are_counted_over_every_pair_and_ties_are_half():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, (30, 8)).astype(float)  # few values: many ties
    labels, query_labels = generator.integers(0, 3, 30), generator.integers(0, 3, 8)
    by_query = []
    for q, query_label in enumerate(query_labels):
        won = [
            (scores[m, q] > scores[other, q]) + 0.5 * (scores[m, q] == scores[other, q])
            for m in range(30)
            for other in range(30)
            if labels[m] == query_label != labels[other]
        ]
        by_query.append(np.mean(won))
    # sums of halves: exact but for the two means
    np.testing.assert_allclose(same_class_wins(scores, labels, query_labels), 100 * np.mean(by_query), rtol=1e-12)


def test_a_query_whose_class_has_no_candidate_is_not_asked():
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert same_class_wins(scores, np.array([0, 1]), np.array([0, 7])) == 100


def test_labels_are_compared_only_on_candidates_of_the_querys_class():
    right, wrong = np.array([[1.0], [0.0], [2.0]]), np.array([[0.0], [5.0], [2.0]])
    assert right_label_wins(right, wrong, np.array([3, 4, 3]), np.array([3])) == 75
