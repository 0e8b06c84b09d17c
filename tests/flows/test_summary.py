from rich.console import Console

from flows.summary import metrics_table
from tasks.evaluation import RETRIEVAL, TAIL_PATCH, Estimate, Metrics
from tasks.methods import METHODS

ESTIMATE = Estimate(value=0.75, low=0.625, high=0.875)
NEGATIVE = Estimate(value=-0.001, low=-0.125, high=-0.0625)


def test_every_method_and_metric_is_readable_in_80_columns():
    values = dict.fromkeys(RETRIEVAL, ESTIMATE) | {TAIL_PATCH: NEGATIVE}
    counts = {"num_queries_by_evidence": {}, "num_queries": 2, "num_queries_with_evidence": 2, "num_ranks": {}}
    metrics = Metrics(
        methods=dict.fromkeys(METHODS, values), reference="trackstar", differences={}, evidence="aliases", **counts
    )
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(metrics))
    lines = [line.split() for line in printed.get().splitlines()]
    assert lines[0][-1] == "aliases"
    means = {line[0]: line[1:] for line in lines[3::2]}
    assert means == dict.fromkeys(METHODS, ["0.750"] * len(RETRIEVAL) + ["-0.001"])
    assert lines[4::2] == [["0.625", "0.875"] * len(RETRIEVAL) + ["-0.125", "-0.062"]] * len(METHODS)
