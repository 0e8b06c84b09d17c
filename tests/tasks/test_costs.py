import pytest
from upath import UPath

from storage.layout import COST
from storage.manifest import Artifact, damaged_files, new_artifact
from tasks.costs import CORPUS_STATISTICS, QUERY_GRADIENTS, SCORES, SUM, method_costs, recorded_cost, seconds

FACTS = {"method": "trackstar", "whitening": "mixed", "factors": None, "spectrum": None}


def make(index, kind, **facts):
    directory = index / kind / "0123456789abcdef"
    with recorded_cost(kind, directory), new_artifact(directory, kind=kind, identity={}) as draft:
        (draft.path / "content").write_bytes(b"x")
    return Artifact(name=f"{kind}/{directory.name}", digest="", facts=facts)


def test_only_what_is_made_for_a_query_set_is_timed_and_no_digest_covers_it(tmp_path):
    index = UPath(tmp_path)
    made = {kind: make(index, kind) for kind in ("rankings", "shards")}
    assert seconds(index / made["rankings"].name) >= 0
    assert seconds(index / made["shards"].name) is None
    (index / made["rankings"].name / COST).unlink()
    assert damaged_files(index / made["rankings"].name) == []


def test_a_gradient_method_costs_its_queries_and_norms_too_and_another_its_ranking_alone(tmp_path):
    index = UPath(tmp_path)
    encoded, norms = make(index, "queries"), make(index, "train_norms")
    gradient = make(index, "rankings", **FACTS, queries=encoded.name, train_norms=norms.name)
    lexical = gradient.model_copy(update={"facts": {"method": "bm25"}})
    costs = method_costs(index, [gradient, lexical])
    assert set(costs["trackstar"]) == {QUERY_GRADIENTS, CORPUS_STATISTICS, SCORES, SUM}
    assert costs["trackstar"][SUM] == pytest.approx(
        sum(costs["trackstar"][step] for step in costs["trackstar"] if step != SUM)
    )
    assert set(costs["bm25"]) == {SCORES}


def test_a_sum_with_an_unknown_part_is_not_given(tmp_path):
    index = UPath(tmp_path)
    encoded, norms = make(index, "queries"), make(index, "train_norms")
    ranking = make(index, "rankings", **FACTS, queries=encoded.name, train_norms=norms.name)
    (index / norms.name / COST).unlink()
    assert set(method_costs(index, [ranking])["trackstar"]) == {QUERY_GRADIENTS, SCORES}
