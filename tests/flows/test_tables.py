from rich.console import Console

from trackstar.flows.cli.tables import metrics_table
from trackstar.tasks.evaluation.metrics import RETRIEVAL, TAIL_PATCH, Estimate, Metrics
from trackstar.tasks.methods.settings import METHODS

ESTIMATE = Estimate(value=0.75, low=0.625, high=0.875)
NEGATIVE = Estimate(value=-0.001, low=-0.125, high=-0.0625)


def test_every_method_and_metric_is_readable_in_80_columns():
    values = dict.fromkeys(RETRIEVAL, ESTIMATE) | {TAIL_PATCH: NEGATIVE}
    sources = {"relevant_ids": 1, "entailment": 2}
    counts = {"num_queries_by_evidence": sources, "num_queries": 5, "num_queries_with_evidence": 3, "num_ranks": {}}
    metrics = Metrics(
        methods=dict.fromkeys(METHODS, values), reference="trackstar", differences={}, evidence="both", **counts
    )
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(metrics))
    assert "Evidence: relevant_ids for 1, entailment for 2, of 5 queries" in printed.get()
    lines = [line.split() for line in printed.get().splitlines()]
    means = {line[0]: line[1:] for line in lines[4::2]}
    assert means == dict.fromkeys(METHODS, ["0.750"] * len(RETRIEVAL) + ["-0.001"])
    assert lines[5::2] == [["0.625", "0.875"] * len(RETRIEVAL) + ["-0.125", "-0.062"]] * len(METHODS)


def test_without_evidence_the_table_says_why_there_is_no_mrr():
    metrics = Metrics(
        methods={"bm25": {}}, reference="bm25", differences={}, evidence=None, num_queries_by_evidence={},
        num_queries_in_vain={"aliases": 5}, num_queries=5, num_queries_with_evidence=0, num_ranks={},
    )  # fmt: skip
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(metrics))
    said = " ".join(printed.get().split())
    assert "None of the 5 queries has evidence (5 with aliases: no text holds the answer or one of them)" in said
