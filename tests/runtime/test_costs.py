import pytest
from upath import UPath

from trackstar.storage.errors import CorruptionError
from trackstar.storage.layout import COST
from trackstar.storage.manifest import Artifact, damaged_files, new_artifact, require_manifest
from trackstar.storage.results import write_sealed
from trackstar.tasks.evaluation.costs import BUILD, CORPUS_STATISTICS, QUERY_GRADIENTS, SCORES, SUM, method_costs
from trackstar.tasks.runtime.costs import recorded_cost, seconds

FACTS = {"whitening": "mixed", "factors": None, "spectrum": None}


@pytest.fixture
def index(tmp_path):
    return UPath(tmp_path)


def make(index, kind, name="0", facts=None, **identity):
    """An artifact that took as many seconds as its name says."""
    directory = index / kind / f"{name:0>16}"
    with recorded_cost(kind, directory), new_artifact(directory, kind=kind, identity=identity) as draft:
        (draft.path / "content").write_text(f"{kind} {name}")
        draft.facts |= facts or {}
    if (directory / COST).exists():
        write_sealed(directory / COST, {"seconds": int(name)})
    return Artifact(
        name=f"{kind}/{directory.name}", digest=require_manifest(directory).digest, facts=facts or {"num_documents": 1}
    )


def gradient_ranking(index, method="trackstar", name="5", shards=None, **facts):
    encoded, norms = make(index, "queries", "1"), make(index, "train_norms", "2")
    shards = [make(index, "shards", "90").digest] if shards is None else shards
    known = {"method": method, **FACTS, "train_norms": norms.name, **facts}
    return make(index, "rankings", name, known, queries=encoded.digest, shards=shards)


def test_only_what_a_comparison_makes_is_timed_and_no_digest_covers_it(index):
    for kind, is_timed in (("rankings", True), ("embeddings", True), ("shards", False), ("autocorrelation", False)):
        made = index / make(index, kind).name
        assert (seconds(made) is not None) == is_timed
        (made / COST).unlink(missing_ok=True)
        assert damaged_files(made) == []


def test_a_gradient_method_costs_an_index_and_lexical_retrieval_none(index):
    ranking = gradient_ranking(index)
    lexical = make(index, "rankings", "3", {"method": "bm25"}, queries=[{"id": "q"}], shards=["whatever"])
    costs = method_costs(index, [ranking, lexical], built=100.0)
    assert costs["trackstar"] == {BUILD: 100.0, SCORES: 5.0, QUERY_GRADIENTS: 1.0, CORPUS_STATISTICS: 2.0, SUM: 8.0}
    assert costs["bm25"] == {BUILD: 0.0, SCORES: 3.0, SUM: 3.0}


def test_plain_gradients_and_embeddings_are_what_their_methods_cost_the_corpus(index):
    plain = [make(index, "plain_shards", name).digest for name in ("10", "20")]
    embeddings = [make(index, "embeddings", name).digest for name in ("30", "40")]
    dot = make(
        index, "rankings", "4", {"method": "grad_dot"}, queries=[make(index, "queries", "1").digest], shards=[plain]
    )
    dense = make(index, "rankings", "6", {"method": "dense"}, queries=[{"id": "q"}], embeddings=embeddings)
    costs = method_costs(index, [gradient_ranking(index, "no_v", shards=plain), dot, dense], built=100.0)
    assert costs["no_v"][BUILD] == costs["grad_dot"][BUILD] == 30.0
    assert costs["grad_dot"][QUERY_GRADIENTS] == 1.0
    assert costs["dense"] == {BUILD: 70.0, SCORES: 6.0, SUM: 6.0}


def test_a_fusion_costs_what_it_fuses_and_its_own_ranking(index):
    lexical = make(index, "rankings", "3", {"method": "bm25"}, queries=[{"id": "q"}], shards=["whatever"])
    fused = [gradient_ranking(index).digest, lexical.digest]
    costs = method_costs(index, [make(index, "rankings", "7", {"method": "hybrid"}, rankings=fused)], built=100.0)
    assert costs["hybrid"] == {
        BUILD: 100.0, SCORES: 5.0 + 3.0 + 7.0, QUERY_GRADIENTS: 1.0, CORPUS_STATISTICS: 2.0, SUM: 18.0
    }  # fmt: skip


def test_a_step_with_an_unknown_part_is_not_given_and_neither_is_a_sum_of_it(index):
    ranking = gradient_ranking(index)
    assert set(method_costs(index, [ranking], built=None)["trackstar"]) == {
        SCORES, QUERY_GRADIENTS, CORPUS_STATISTICS, SUM
    }  # fmt: skip
    (index / ranking.facts["train_norms"] / COST).unlink()
    assert set(method_costs(index, [ranking], built=1.0)["trackstar"]) == {BUILD, SCORES, QUERY_GRADIENTS}


def test_damaged_seconds_are_an_error_that_says_what_is_lost(index):
    path = index / make(index, "rankings", "3").name / COST
    path.write_bytes(path.read_bytes().replace(b"3,", b"7,"))
    with pytest.raises(CorruptionError, match=r"cost.json differs .*; delete this file: nothing is lost but"):
        seconds(path.parent)
    path.unlink()
    assert seconds(path.parent) is None
