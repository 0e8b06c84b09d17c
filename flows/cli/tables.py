"""What a command prints when it is done, and what ``show`` and ``verify`` print about a directory."""

from collections.abc import Iterable
from datetime import timedelta
from math import ceil
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trackstar.flows.proponents_text import proponents_text
from trackstar.storage.errors import InputError
from trackstar.storage.layout import INDEX, METRICS, RUN, location
from trackstar.storage.results import read_json
from trackstar.storage.verification import findings, remove_damaged

SHORT_NAME = 12  # of a metric: no wider than its interval


def facts_table(title: str, facts: Iterable[tuple[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in facts:
        table.add_row(f"[dim]{name}[/]", escape(f"{value:,}" if isinstance(value, int) else str(value)))
    return table


def index_table(index: Any) -> Table:
    """An index in a few lines."""
    from trackstar.tasks.index.contents import block_summary

    V = index.engine.second_moment
    gradient = index.engine.gradient
    facts = [
        ("checkpoint", index.engine.checkpoint.path),
        ("documents", index.total("num_documents")),
        ("tokens", index.total("num_tokens")),
        ("quarantined", index.total("num_quarantined")),
        ("withdrawn", index.num_withdrawn),
        ("shards", len(index.shards)),
        ("second moment", V.facts["mode"] if V else "none"),
        ("projection", gradient.projection if gradient.projection == "none" else f"k = {gradient.projection_dim}"),
        ("blocks", block_summary(list(index.block_dims.values()))),
        ("R_train", _curvature(index)),
        ("disk", f"{_size_bytes(index.path) / 2**20:,.1f} MiB"),
    ]
    return facts_table(f"Index {index.path}", facts)


def budget_table(budget: Any) -> RenderableType:
    """A prediction, part by part."""
    tokens = f"{budget.num_tokens:,.0f}"
    if budget.num_tokens_error:
        tokens += f" ± {budget.num_tokens_error:,.0f}, from {budget.num_sampled:,} documents"
    facts = [
        ("documents", budget.num_documents),
        ("tokens", tokens),
        ("probe", f"{budget.num_probed:,} documents were indexed in a scratch directory"),
        ("peak memory", f"{budget.memory_bytes / 2**30:,.1f} GiB"),
    ]
    table = Table("part", "time", "disk", title="Prediction", title_justify="left")
    for name in dict.fromkeys([*budget.seconds, *budget.disk_bytes]):
        table.add_row(name, *_cost(budget.seconds.get(name), budget.disk_bytes.get(name)))
    table.add_section()
    table.add_row("all", *_cost(sum(budget.seconds.values()), sum(budget.disk_bytes.values())))
    return Group(facts_table("Dry run: nothing was written", facts), table)


def attribution_table(config: Any) -> RenderableType:
    """The best proponents of the first queries as texts, and λ."""
    run = read_json(location(config.out) / RUN)
    (method,) = run["methods"].values()
    facts = [
        ("queries", len(run["queries"])),
        ("candidates", method["num_candidates"]),
        ("mixing weight λ", f"{method['mixing_weight']:.4g}{_limit(method)}"),
        ("damping", f"{method['damping']:g}{_damping_advice(run, method)}"),
        ("further λ", ", ".join(list(method["mixing_weights"])[1:]) or "none"),
        ("results", config.out),
    ]
    spectra = [spectrum_table(of, method["damping"]) for name, of in method["spectra"].items() if name == "R_train"]
    shown = proponents_text(location(config.out), [method["method"]])
    return Group(shown, facts_table("Run", facts), *spectra)


def metrics_table(metrics: Any) -> Table:
    """A row a method, a column a metric, each mean above its interval; whatever is compared, it fits 80 columns."""
    names = list(dict.fromkeys(name for values in metrics.methods.values() for name in values))
    table = Table(
        "method",
        *(name if len(name) <= SHORT_NAME else name.replace("_at_", "_\nat_") for name in names),
        title=f"Mean over queries, 95 % interval\n{_evidence(metrics)}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for method, values in metrics.methods.items():
        found = [values.get(name) for name in names]
        table.add_row(method, *(f"{e.value:.3f}\n[dim]{e.low:.3f} {e.high:.3f}[/]" if e else "" for e in found))
    return table


def _evidence(metrics: Any) -> str:
    sources = ", ".join(f"{name} for {count:,}" for name, count in metrics.num_queries_by_evidence.items())
    return f"Evidence: {sources or 'none'}, of {metrics.num_queries:,} queries"


def describe(directory: str) -> RenderableType:
    """An index or a result directory, explained.

    Raises:
        InputError: The directory is neither.
    """
    path = location(directory)
    if (path / INDEX).exists():
        from trackstar.tasks.index.contents import read_index

        index = read_index(directory)
        return Group(index_table(index), *_withdrawals(index), *_spectra(index), _disk_table(path))
    if (path / RUN).exists():
        return _run_table(path)
    raise InputError(f"{directory} is neither a finished index nor a result directory; give one that a command wrote")


def verify_index(directory: str, *, repair: bool) -> tuple[RenderableType, bool]:
    """Check every artifact below a directory; with ``repair``, delete what is damaged."""
    path = location(directory)
    if not path.is_dir():
        raise InputError(f"{directory} is no directory; give an index")
    checked = list(findings(path))
    damaged = [finding for finding in checked if finding is not None]
    if repair:
        remove_damaged(damaged)
    lines = [f"[red]{escape(str(finding.path))}[/] {escape(finding.problem)}" for finding in damaged]
    outcome = "removed; index again to rebuild them" if repair else "add --repair to remove them"
    closing = f"{len(damaged)} damaged or missing, {outcome}" if damaged else "all bytes are as they were written"
    return Group(*lines, f"{path}: {closing}"), not damaged


def _run_table(path: Any) -> RenderableType:
    run = read_json(path / RUN)
    facts = [(name, run[name]) for name in ("index", "second_moment", "num_documents", "num_quarantined")]
    for method, known in run["methods"].items():
        weight = f"λ = {known['mixing_weight']:.4g}, damping {known['damping']:g}" if "mixing_weight" in known else ""
        facts.append((method, f"{known['num_candidates']:,} candidates {weight}"))
    facts.append(("queries", len(run["queries"])))
    table = facts_table(f"Results {path}", facts)
    if not (path / METRICS).exists():
        return table
    from trackstar.tasks.evaluation.metrics import Metrics

    return Group(table, metrics_table(Metrics.model_validate(read_json(path / METRICS))))


def _disk_table(path: Any) -> Table:
    parts = sorted(part for part in path.iterdir() if part.is_dir())
    return facts_table("Disk", [(part.name, f"{_size_bytes(part) / 2**20:,.1f} MiB") for part in parts])


def _curvature(index: Any) -> str:
    if index.autocorrelation is None:
        return "none: the blocks are too large, use --whitening none"
    facts = index.autocorrelation.facts
    source = f"a sample of {facts['num_documents']:,}" if facts["sample"] else f"{facts['num_documents']:,}"
    kept = f", {len(index.grams)} sums of shards kept" if index.grams else ""
    return f"of {source} documents{kept}"


def _withdrawals(index: Any) -> list[Table]:
    """When and why documents were withdrawn, the latest first."""
    from trackstar.tasks.index.withdrawals import read_tombstones

    table = read_tombstones(index.tombstones, str(index.path))
    if not len(table):
        return []
    groups = table.group_by("withdrawn_at", "reason").len().sort("withdrawn_at", descending=True)
    rows = [(at, f"{count:,} documents {reason}") for at, reason, count in groups.iter_rows()]
    return [facts_table("Withdrawn", rows)]


def _spectra(index: Any) -> list[Table]:
    """What R_train is like, where its spectrum has been measured."""
    from trackstar.tasks.scoring.spectra import known_reports

    if index.autocorrelation is None:
        return []
    return [spectrum_table(report, damping) for damping, report in known_reports(index.path, index.autocorrelation)]


def spectrum_table(facts: dict[str, Any], damping: float) -> Table:
    """Rank, condition and what damping decides."""
    condition = facts["condition"]
    return facts_table(
        f"R_train at damping {damping:g}",
        [
            ("rank", f"{facts['rank']:,} of {facts['num_dims']:,}"),
            ("effective rank", facts["effective_rank"]),
            ("condition", "infinite" if condition is None else f"{condition:.3g}"),
            ("effective dimension", f"{facts['effective_dimension']:,.1f}"),
            ("damping's share", f"{facts['damping_share']:.1%}"),
        ],
    )


def _limit(method: dict[str, Any]) -> str:
    if method["limited_by"] is None:
        return ""
    return (
        f" (at component {method['crossing_index']} instead of {method['wanted_index']}: {method['limited_by']} ends)"
    )


def _damping_advice(run: dict[str, Any], method: dict[str, Any]) -> str:
    """R_train of fewer documents than dimensions is singular: little damping then drowns what they have in common."""
    widest = max(run["block_dims"].values())
    if method["whitening"] == "none" or method["damping"] >= 1 or run["num_documents"] >= widest:
        return ""
    return f" (fewer documents than a block's {widest:,} dimensions: try --damping 10)"


def _cost(seconds: float | None, num_bytes: int | None) -> tuple[str, str]:
    time = "" if seconds is None else str(timedelta(seconds=ceil(seconds)))
    return time, "" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB"


def _size_bytes(path: Any) -> int:
    return path.fs.du(path.path)
