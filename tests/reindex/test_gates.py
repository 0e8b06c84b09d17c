"""A gate fails where the queries, one by one, say that something was lost, and only there."""

from types import SimpleNamespace

import numpy as np
import pytest
from upath import UPath

from trackstar.tasks.reindex import gates
from trackstar.tasks.reindex.gates import Decision, decision_of, measure_gates, write_decision
from trackstar.tasks.reindex.settings import GateConfig


@pytest.fixture(autouse=True)
def agreement(monkeypatch):
    """Each index stores what it should, but where a test says otherwise."""
    found = [1.0]
    monkeypatch.setattr(gates, "stored_agreement", lambda _: found[0])
    return found


def index(name="a-1", num_documents=100, num_quarantined=0, num_withdrawn=0):
    facts = {"num_documents": num_documents, "num_quarantined": num_quarantined}
    return SimpleNamespace(path=UPath(f"/indexes/{name}"), total=facts.get, num_withdrawn=num_withdrawn)


def measured(new, serving, **bounds):
    settings = GateConfig(**bounds)
    nowhere = UPath("/nowhere")
    decision = measure_gates(new, nowhere, serving=serving, serving_results=serving and nowhere, settings=settings)
    return {gate.name: gate.holds for gate in decision.gates}


def test_encodings_that_are_not_those_of_the_gradients_are_held_back(agreement):
    agreement[0] = 0.29
    assert measured(index(), None)["agreement"] is False
    agreement[0] = float("nan")
    assert measured(index(), None)["agreement"] is False


def test_the_first_index_is_held_to_itself_alone():
    assert measured(index(num_documents=90, num_quarantined=10), None) == {"quarantined": True, "agreement": True}
    assert measured(index(num_documents=89, num_quarantined=11), None)["quarantined"] is False


def test_fewer_documents_are_a_loss_and_withdrawn_ones_are_not():
    assert measured(index(num_documents=99), index())["lost"] is True
    assert measured(index(num_documents=98), index())["lost"] is False
    assert measured(index(num_documents=90), index(num_withdrawn=10))["lost"] is True
    assert measured(index(num_withdrawn=10), index())["lost"] is False
    assert measured(index(num_documents=80), index(), lost=0.2)["lost"] is True


@pytest.mark.parametrize(
    ("after", "holds"),
    [
        ([0.5] * 20, True),
        ([0.1] * 20, False),
        ([0.46] * 20, True),  # 0.92 of what it was
        ([0.44] * 20, False),
        ([0.1] + [0.5] * 19, True),  # one query says nothing of the mean
        ([0.9] * 20, True),
    ],
)
def test_a_mean_has_fallen_where_the_whole_interval_says_so(after, holds):
    before, after = np.full(20, 0.5), np.array(after)
    likely = gates._less_likely((-np.log(before), -np.log(after)), 0.1)
    ranked = gates._lower_mrr((before, after), 0.1)
    assert (likely.holds, ranked.holds) == (holds, holds)
    assert likely.value == pytest.approx(np.exp(np.log(after / before).mean()))  # the definition, in float64
    assert likely.low <= likely.value * (1 + 1e-12)
    assert likely.value <= likely.high * (1 + 1e-12)


def test_without_a_bound_nothing_is_too_unlikely():
    assert gates._less_likely((np.zeros(3), np.full(3, 700.0)), 1.0).holds


def test_a_decision_names_what_failed_with_its_numbers_and_is_read_as_it_was(tmp_path):
    found = [gates._lower_mrr((np.full(3, 0.5), np.full(3, 0.25)), 0.1), gates._quarantined(index(), 0.1)]
    decision = Decision(index="b-2", against="a-1", settings=GateConfig(), gates=tuple(found))
    assert not decision.holds
    assert decision.failures.startswith("MRR went from 0.500 to 0.250 over 3 queries")
    assert decision.failures.endswith("(--gate-mrr)")
    write_decision(UPath(tmp_path), decision)
    assert decision_of(UPath(tmp_path)) == decision
    (tmp_path / "gates.json").write_text("{}")
    assert decision_of(UPath(tmp_path)) is None
