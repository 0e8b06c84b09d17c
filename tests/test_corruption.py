"""A sample of the damages of ``tests.corruption``: each kind of file in each way, and a cure of each kind."""

import random

import pytest

from tests.corruption import Torture, kind_of


@pytest.fixture(scope="module")
def torture(tmp_path_factory):
    return Torture(tmp_path_factory.mktemp("torture"))


def test_an_index_that_nobody_damaged_is_read_without_a_word(torture):
    for file in torture.files:
        if not file.endswith("proponents.jsonl"):
            torture.readers.of(file)()


def test_each_kind_of_file_damaged_in_each_way_is_found_named_and_cured_as_the_error_says(torture):
    ways, kinds = {}, set()
    for trial in torture.trials(random.Random(0)):
        ways.setdefault((kind_of(trial.file), trial.damage), trial)
    for (kind, _), trial in ways.items():
        outcome = torture.run(trial, cure=kind not in kinds)
        assert outcome.is_sound, (trial.file, trial.damage, outcome.error)
        kinds.add(kind)
    assert len(ways) > 150
    assert len(kinds) > 35


def test_each_artifact_swapped_as_a_whole_for_another_indexs_is_found_named_and_cured(torture):
    outcomes = list(torture.swap_artifacts(cure=True))
    assert len(outcomes) > 9
    for outcome in outcomes:
        assert outcome.is_sound, (outcome.trial.file, outcome.error)
