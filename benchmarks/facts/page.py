"""The page of a fact-tracing benchmark: means over the queries of all seeds, and differences in each seed."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.facts.corpus import BUCKETS
from benchmarks.facts.outcome import FIRST_KINDS, Outcome, Run, pooled, pooled_first_kinds
from benchmarks.page import provenance
from trackstar.tasks.evaluation.metrics import TAIL_PATCH, Estimate

SHOWN = ("mrr", "hit_at_10", "recall_at_10", TAIL_PATCH)
GROUPED = ("mrr", TAIL_PATCH)
PER_SEED = ("mrr", "recall_at_10", TAIL_PATCH)

Cells = Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # column to method to metric


def markdown(runs: Sequence[Run], *, command: str) -> str:
    """The results as a page: all queries, then tables over groups, paired differences, each seed, the decoys."""
    outcome = pooled(runs)
    whole = outcome.metrics()
    lines = [
        "# Fact tracing",
        "",
        provenance(command),
        "",
        *_sizes(runs, outcome),
        "",
        *_table("all queries", {name: whole.methods for name in SHOWN}, columns=SHOWN),
        *_by_group(outcome),
        "",
        f"## Method minus {whole.reference}, paired by query",
        "",
        *_table("all queries", {name: whole.differences for name in SHOWN}, columns=SHOWN),
        *(_by_seed(runs) if len(runs) > 1 else ()),
        "",
        *_decoys(runs, outcome),
    ]
    return "\n".join(lines) + "\n"


def _sizes(runs: Sequence[Run], outcome: Outcome) -> Iterator[str]:
    for run in runs:
        seed = f"Seed {run.seed}: " if len(runs) > 1 else ""
        of_groups = ", ".join(
            f"{group}: {run.outcome.share_right(group):.0%}" for group in run.outcome.groups() if group in BUCKETS
        )
        yield (
            f"{seed}{len(run.corpus.documents):,} sentences, {run.corpus.num_facts:,} facts, {len(run.corpus.queries)} "
            f"of them queried. The model answers {run.outcome.share_right():.0%} of the queries; by how often the fact "
            f"is stated {of_groups}."
        )
        yield ""
    seeds = f" The queries of the {len(runs)} seeds are pooled: {len(outcome.queries)}." if len(runs) > 1 else ""
    yield f"Means over queries with 95 % bootstrap intervals.{seeds}"


def _by_group(outcome: Outcome) -> list[str]:
    by_group = {group: outcome.metrics(group) for group in outcome.groups()}
    cells = {f"{group} ({metrics.num_queries})": metrics.methods for group, metrics in by_group.items()}
    lines = []
    for metric in GROUPED:
        lines += ["", f"## {metric} by how often the fact is stated, and by the model's answer (queries)", ""]
        lines += _table("method", cells, columns=tuple(cells), metric=metric)
    return lines


def _by_seed(runs: Sequence[Run]) -> list[str]:
    """Paired differences, a column a seed."""
    as_ranked = {f"seed {run.seed}": run.outcome.metrics() for run in runs}
    without = {f"seed {run.seed}": run.outcome.without_decoys().metrics() for run in runs}
    tables = [(metric, metric, as_ranked) for metric in PER_SEED]
    tables.insert(1, ("mrr", "mrr without the decoys", without))
    lines = []
    for metric, title, by_seed in tables:
        reference = next(iter(by_seed.values())).reference
        cells = {seed: metrics.differences for seed, metrics in by_seed.items()}
        lines += ["", f"## {title}, method minus {reference}, in each seed", ""]
        lines += _table("method", cells, columns=tuple(cells), metric=metric)
    return lines


def _decoys(runs: Sequence[Run], outcome: Outcome) -> list[str]:
    """What stands first, and the retrieval metrics of the rankings without their decoys."""
    metrics = outcome.without_decoys().metrics()
    reference = f"mrr minus {metrics.reference}"
    cells = {"mrr": metrics.methods, "hit_at_10": metrics.methods, "recall_at_10": metrics.methods}
    differences = {name: {reference: found["mrr"]} for name, found in metrics.differences.items()}
    return [
        "## What stands first, in how many queries",
        "",
        f"| method | {' | '.join(FIRST_KINDS)} |",
        "|---" * (len(FIRST_KINDS) + 1) + "|",
        *(
            f"| {method} | {' | '.join(str(found[kind]) for kind in FIRST_KINDS)} |"
            for method, found in pooled_first_kinds(runs).items()
        ),
        "",
        "## The same rankings with the decoys taken out",
        "",
        *_table("method", {**cells, reference: differences}, columns=(*cells, reference)),
    ]


def _table(corner: str, cells: Cells, *, columns: Sequence[str], metric: str = "") -> list[str]:
    """Methods by columns; a column is a metric, or a group or a seed at one metric."""
    methods = dict.fromkeys(name for column in columns for name in cells[column])
    rows = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method in methods:
        found = [_cell(cells[column].get(method, {}), metric or column) for column in columns]
        rows.append(f"| {method} | {' | '.join(found)} |")
    return rows


def _cell(estimates: Mapping[str, Estimate], metric: str) -> str:
    if metric not in estimates:
        return "–"
    value, low, high = estimates[metric].value, estimates[metric].low, estimates[metric].high
    digits = 4 if metric == TAIL_PATCH else 3
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})".replace("-", "−")
