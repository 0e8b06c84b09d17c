"""What a command prints when it is done, and what ``show`` and ``verify`` print about a directory."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from math import ceil
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trackstar.flows.cli.sentences import printable
from trackstar.storage.errors import CorruptionError, InputError
from trackstar.storage.layout import DRIFT_PAGE, INDEX, METRICS, REPORT, RESULTS, RUN, location
from trackstar.storage.results import CURE, PROPONENT, read_json, read_proponents, read_run
from trackstar.storage.tombstone_copies import restore
from trackstar.storage.verification import Finding, findings, remove_damaged, require_index
from trackstar.storage.writer import changing, reading
from trackstar.tasks.index.index_file import block_summary, read_index


def plain(text: str) -> str:
    """Text that came from outside, for a terminal: neither markup nor escape sequences are left in it."""
    return escape(printable(text))


class Outcome(NamedTuple):
    """What a command prints when it is done.

    Attributes:
        facts: The same for a program, as JSON.
        page: The page that was written, if any.
    """

    table: RenderableType | None
    facts: dict[str, Any]
    page: str = ""


SHOWN_QUERIES = 5
SHOWN_PROPONENTS = 3
SHOWN_CHARACTERS = 70
SOUND = "all bytes are as they were written"
SHORT_NAME = 12  # of a metric: no wider than its interval


def facts_table(title: str, facts: Iterable[tuple[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in facts:
        table.add_row(f"[dim]{name}[/]", plain(f"{value:,}" if isinstance(value, int) else str(value)))
    return table


def nothing_outcome(_: Any) -> Outcome:
    return Outcome(None, {})


def index_outcome(index: Any) -> Outcome:
    return Outcome(index_table(index), index_facts(index))


def budget_outcome(budget: Any) -> Outcome:
    return Outcome(budget_table(budget), asdict(budget))


def attribution_outcome(record: Any, out: str) -> Outcome:
    return Outcome(attribution_table(out), record)


def metrics_outcome(metrics: Any) -> Outcome:
    return Outcome(metrics_table(metrics), metrics.model_dump(mode="json"))


def reindex_outcome(done: Any, config: Any) -> Outcome:
    """What was done, by name, and the page of the last drift."""
    outcome = "nothing to do" if done.is_idle else "done"
    facts = [(name, ", ".join(value) or "none") for name, value in done]
    page = str(location(config.indexes) / RESULTS / done.drifts[-1] / DRIFT_PAGE) if done.drifts else ""
    return Outcome(facts_table(f"Reindex {config.checkpoints}: {outcome}", facts), done.model_dump(mode="json"), page)


def selfcheck_outcome(result: Any) -> Outcome:
    checks = [
        (
            f"{'ok' if check.holds else 'BROKEN':<7}{check.name}",
            f"changes by {check.change:.1e}, limit {check.limit:.0e}",
        )
        for check in result.checks
    ]
    table = facts_table("Self-check", [("attention", result.attention), *checks])
    return Outcome(table, {"holds": result.holds, **asdict(result)})


def index_table(index: Any) -> Table:
    """An index in a few lines."""
    size = f"{_size_bytes(index.path) / 2**20:,.1f} MiB"
    facts = {**index_facts(index), "disk": size}
    title = f"Index {facts.pop('index')}"
    labels = [name if name == "R_train" else name.replace("_", " ") for name in facts]
    return facts_table(title, zip(labels, facts.values(), strict=True))


def index_facts(index: Any) -> dict[str, Any]:
    """An index in numbers and words."""
    V = index.engine.second_moment
    gradient = index.engine.gradient
    return {
        "index": str(index.path),
        "checkpoint": index.engine.checkpoint.path,
        "documents": index.total("num_documents"),
        "tokens": index.total("num_tokens"),
        "quarantined": index.total("num_quarantined"),
        "withdrawn": index.num_withdrawn,
        "shards": len(index.shards),
        "second_moment": V.facts["mode"] if V else "none",
        **dict(_correction(index.engine)),
        **({"preset": index.preset} if index.preset else {}),
        "projection": gradient.projection if gradient.projection == "none" else f"k = {gradient.projection_dim}",
        "blocks": block_summary(list(index.block_dims.values())),
        "R_train": _curvature(index),
    }


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


def attribution_table(out: str) -> RenderableType:
    """The best proponents of the first queries, and λ."""
    frame = read_proponents(location(out))
    run = read_run(location(out))
    (method,) = run["methods"].values()
    frame = frame.filter(frame["method"] == method["method"])
    table = Table("query", "rank", "score", "candidate", title="Proponents", title_justify="left")
    best = frame.filter((frame["kind"] == PROPONENT) & (frame["rank"] <= SHOWN_PROPONENTS))
    for query_id in best["query_id"].unique(maintain_order=True).to_list()[:SHOWN_QUERIES]:
        for row in best.filter(best["query_id"] == query_id).iter_rows(named=True):
            table.add_row(
                plain(_short(query_id)), str(row["rank"]), f"{row['score']:.3f}", plain(_short(row["candidate_id"]))
            )
    facts = [
        ("queries", len(run["queries"])),
        ("candidates", method["num_candidates"]),
        ("mixing weight λ", f"{method['mixing_weight']:.4g}{_limit(method)}"),
        ("damping", f"{_damping(method)}{_damping_advice(run, method)}"),
        ("further λ", ", ".join(list(method["mixing_weights"])[1:]) or "none"),
        ("results", out),
    ]
    spectra = [spectrum_table(of, method["damping"]) for name, of in method["spectra"].items() if name == "R_train"]
    return Group(table, facts_table("Run", facts), *spectra)


def metrics_table(metrics: Any) -> RenderableType:
    """A row a method, a column a metric, each mean above its interval; whatever is compared, it fits 80 columns."""
    from trackstar.tasks.evaluation.metrics import no_evidence

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
    missing = no_evidence(metrics)
    return Group(table, f"[red]{escape(missing)}[/]") if missing else table


def _evidence(metrics: Any) -> str:
    sources = ", ".join(f"{name} for {count:,}" for name, count in metrics.num_queries_by_evidence.items())
    return f"Evidence: {sources or 'none'}, of {metrics.num_queries:,} queries"


def directory_outcome(directory: str) -> Outcome:
    """An index or a result directory, explained.

    Raises:
        InputError: The directory is neither.
    """
    path = location(directory)
    if (path / INDEX).exists():
        with reading(path):
            index = read_index(directory)
            table = Group(index_table(index), *_withdrawals(index), *_spectra(index), _disk_table(path))
        return Outcome(table, index_facts(index))
    if (path / RUN).exists():
        page = path / REPORT
        return Outcome(_run_table(path), read_json(path / RUN), str(page) if page.exists() else "")
    raise InputError(f"{directory} is neither a finished index nor a result directory; give one that a command wrote")


class Verification(NamedTuple):
    """What was found in an index, and what became of it.

    Attributes:
        restored: Names of what was restored from a copy.
        removed: What was damaged, or left behind by an interrupted run, and is gone.
        left: What was found and is still there.
        lost: What nothing can restore.
    """

    directory: str
    restored: list[str]
    removed: list[Finding]
    left: list[Finding]
    lost: list[CorruptionError]
    is_repaired: bool

    @property
    def is_sound(self) -> bool:
        return not self.lost and not any(finding.is_damage for finding in self.left)


def verify_index(directory: str, *, repair: bool) -> Verification:
    """Check every artifact of an index; with ``repair``, restore or delete what is damaged.

    Raises:
        InputError: The directory is no index.
        LockedError: Something is to be repaired in an index that another process changes.
    """
    path = location(directory)
    require_index(path)
    if not repair:
        found = [finding for finding in findings(path) if finding is not None]
        return Verification(str(path), [], [], found, [], is_repaired=False)
    with changing(path):
        restored, lost = restore(path)
        found = [finding for finding in findings(path) if finding is not None]
        left = remove_damaged(found)
    removed = [finding for finding in found if finding not in left]
    return Verification(str(path), restored, removed, left, lost, is_repaired=True)


def verification_outcome(found: Verification) -> Outcome:
    lines = [f"{plain(name)} restored from its copy" for name in found.restored]
    lines += map(_finding_line, [*found.removed, *found.left])
    lines += [f"[red]{plain(str(error))}[/]" for error in found.lost]
    cure = "which nothing here may remove" if found.is_repaired else "add --repair to restore or remove them"
    told = [
        (found.removed, True, "damaged or missing, removed; index again to rebuild them"),
        (found.removed, False, "left behind by an interrupted run, removed"),
        (found.left, True, f"damaged or missing, {cure}"),
        (found.left, False, "left behind by an interrupted run, which --repair removes"),
    ]
    counts = [(sum(finding.is_damage == is_damage for finding in of), words) for of, is_damage, words in told]
    closing = "; ".join(f"{count} {words}" for count, words in counts if count) or SOUND
    problems = [{"path": str(finding.path), "problem": finding.problem} for finding in [*found.removed, *found.left]]
    facts = {
        "directory": found.directory,
        "is_sound": found.is_sound,
        "found": problems,
        "restored": found.restored,
        "repaired": found.is_repaired,
    }
    return Outcome(Group(*lines, plain(f"{found.directory}: {closing}")), facts)


def _finding_line(finding: Finding) -> str:
    color = "red" if finding.is_damage else "yellow"
    return f"[{color}]{plain(str(finding.path))}[/] {plain(finding.problem)}"


def _run_table(path: Any) -> RenderableType:
    run = read_run(path)
    facts = [(name, run[name]) for name in ("index", "second_moment", "num_documents", "num_quarantined")]
    for method, known in run["methods"].items():
        weight = f"λ = {known['mixing_weight']:.4g}, damping {_damping(known)}" if "mixing_weight" in known else ""
        facts.append((method, f"{known['num_candidates']:,} candidates {weight}"))
    facts.append(("queries", len(run["queries"])))
    table = facts_table(f"Results {path}", facts)
    if not (path / METRICS).exists():
        return table
    from trackstar.tasks.evaluation.metrics import Metrics

    try:
        metrics = Metrics.model_validate(read_json(path / METRICS))
    except ValidationError as error:
        raise CorruptionError(path / METRICS, "holds no metrics of this version", CURE) from error
    return Group(table, metrics_table(metrics))


def _disk_table(path: Any) -> Table:
    parts = sorted(part for part in path.iterdir() if part.is_dir())
    return facts_table("Disk", [(part.name, f"{_size_bytes(part) / 2**20:,.1f} MiB") for part in parts])


def _correction(engine: Any) -> list[tuple[str, str]]:
    """What gradients are corrected by where it is not V, and how far its estimate has settled."""
    from trackstar.tasks.index.index_file import factor_facts

    name, facts = engine.gradient.correction, factor_facts(engine.kronecker)
    if not facts:
        return [("correction", name)] if name != "v" else []
    halves = facts["halves_differ"]
    differ = f"A by {halves['A']['median']:.0%}, S by {halves['S']['median']:.0%}" if halves else "by an unknown part"
    advice = "" if facts["is_settled"] else "; not settled, raise --factor-sample in another index"
    return [
        ("correction", f"{name}, damping {engine.gradient.factor_damping:g}"),
        (
            "its factors",
            f"{facts['num_tokens']:,} tokens of {facts['num_documents']:,} documents, {facts['labels']} labels",
        ),
        ("two halves of them", f"differ {differ}{advice}"),
    ]


def _curvature(index: Any) -> str:
    if index.is_flat:
        return "none: the identity times each block's mean square"
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


def _damping(method: dict[str, Any]) -> str:
    return "none: R_train is flat" if method["damping"] is None else f"{method['damping']:g}"


def _damping_advice(run: dict[str, Any], method: dict[str, Any]) -> str:
    """R_train of fewer documents than dimensions is singular: little damping then drowns what they have in common."""
    widest = max(run["block_dims"].values())
    if (
        method["whitening"] == "none"
        or method["damping"] is None
        or method["damping"] >= 1
        or run["num_documents"] >= widest
    ):
        return ""
    return f" (fewer documents than a block's {widest:,} dimensions: try --damping 10)"


def _cost(seconds: float | None, num_bytes: int | None) -> tuple[str, str]:
    time = "" if seconds is None else str(timedelta(seconds=ceil(seconds)))
    return time, "" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB"


def _size_bytes(path: Any) -> int:
    return path.fs.du(path.path)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
