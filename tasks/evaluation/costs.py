"""The seconds that each method of a comparison takes: once for a corpus, once for a damping, once for a query set.

    index, once                 gradients, V and R_train; plain gradients or embeddings where a method needs those
    query gradients             the query set through the model
    factors, norms, spectrum    of R_train, kept for the next query set
    scores                      the ranking; of BM25 with its counting of words, of influence with its solve

Each is what was measured when it was computed, read from beside the artifact. An index holds the same bytes however
long it took: its seconds are those of its task runs as Prefect has them, and unknown where it has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateName,
)
from prefect.client.schemas.objects import TaskRun
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.exceptions import PrefectException
from upath import UPath

from trackstar.storage.layout import artifact_path, location
from trackstar.storage.manifest import Artifact, Manifest, require_manifest
from trackstar.tasks.index.contents import Index, manifests
from trackstar.tasks.runtime.costs import seconds

BUILD = "index, once"
QUERY_GRADIENTS = "query gradients"
CORPUS_STATISTICS = "factors, norms, spectrum"
SCORES = "scores"
SUM = "sum without index"
STEPS = (BUILD, QUERY_GRADIENTS, CORPUS_STATISTICS, SCORES, SUM)
RUNS_AT_ONCE = 200  # the most that Prefect answers with

Parts = dict[str, list[float | None]]  # step to what its artifacts took, None where one was not timed


def method_costs(index: UPath, rankings: Sequence[Artifact], *, built: float | None) -> dict[str, dict[str, float]]:
    """Method to step to seconds, each method by itself; a step is left out where one of its parts is unknown.

    Args:
        built: Seconds that the index took, or None where that is not known.
    """
    timings = _Timings(index, built)
    return {ranking.facts["method"]: _summed(timings.parts(index / ranking.name)) for ranking in rankings}


def index_seconds(index: Index) -> float | None:
    """What the task runs that wrote an index took, or None where Prefect has no record of them, or not of every shard.

    A task that ran more than once, for an index that was deleted and built again, counts once, as it last ran.
    """
    try:
        return _recorded_seconds(index)
    except (httpx.HTTPError, PrefectException, ValueError):  # a server that is gone, or a record it cannot read
        return None


def _recorded_seconds(index: Index) -> float | None:
    name = index.engine.checkpoint.name
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[f"index {name}"]))
        newest = {"sort": FlowRunSort.START_TIME_DESC, "limit": RUNS_AT_ONCE}
        flow_runs = client.read_flow_runs(flow_run_filter=named, **newest)
        ids = [run.id for run in flow_runs if _is_of(index, run.parameters)]
        took = {run.name: run.total_run_time.total_seconds() for run in _computed(client, ids)} if ids else {}
    num_shards = sum(label.startswith(f"{name} on ") for label in took)
    return sum(took.values()) if num_shards >= len(index.shards) else None


def _is_of(index: Index, parameters: Mapping[str, Any]) -> bool:
    config = parameters.get("config")
    url = config.get("index") if isinstance(config, Mapping) else None
    return isinstance(url, str) and bool(url.strip()) and str(location(url)) == str(index.path)


def _computed(client: SyncPrefectClient, flow_run_ids: Sequence[Any]) -> Iterable[TaskRun]:
    """The task runs that computed something, the latest last."""
    of_runs = FlowRunFilter(id=FlowRunFilterId(any_=list(flow_run_ids)))
    computed = TaskRunFilter(state=TaskRunFilterState(name=TaskRunFilterStateName(any_=["Completed"])))
    offset = 0
    while True:
        page = client.read_task_runs(
            flow_run_filter=of_runs,
            task_run_filter=computed,
            sort=TaskRunSort.EXPECTED_START_TIME_ASC,
            limit=RUNS_AT_ONCE,
            offset=offset,
        )
        yield from page
        if len(page) < RUNS_AT_ONCE:
            return
        offset += len(page)


class _Timings:
    """What was timed in an index, found by the digests that artifacts name their sources with."""

    def __init__(self, index: UPath, built: float | None) -> None:
        self._index, self._built = index, built

    def parts(self, ranking: UPath) -> Parts:
        """Of the ranking in a directory and all that it was made from."""
        manifest = require_manifest(ranking)
        parts: Parts = {BUILD: self._build(manifest), SCORES: [seconds(ranking)]}
        for digest in manifest.identity.get("rankings", ()):  # a fusion has no more than it fuses
            for step, took in self.parts(self._rankings[digest]).items():
                parts.setdefault(step, []).extend(took)
        queries = [self._queries[digest] for digest in _digests(manifest.identity.get("queries"))]
        if queries:
            parts.setdefault(QUERY_GRADIENTS, []).extend(map(seconds, queries))
        if "train_norms" in manifest.facts:
            names = [manifest.facts.get(name) for name in ("factors", "train_norms", "spectrum")]
            parts[CORPUS_STATISTICS] = [seconds(artifact_path(self._index, name)) for name in names if name]
        return parts

    def _build(self, manifest: Manifest) -> list[float | None]:
        """What of the corpus has to be there before any query: nothing for a method that reads the texts themselves."""
        identity = manifest.identity
        if "embeddings" in identity:
            return [seconds(self._embeddings[digest]) for digest in identity["embeddings"]]
        if not _digests(identity.get("queries")):
            return [0.0]
        shards = _digests(identity["shards"])
        plain = [self._plain_shards[digest] for digest in shards if digest in self._plain_shards]
        return [*map(seconds, plain), *([] if len(plain) == len(shards) else [self._built])]

    @cached_property
    def _rankings(self) -> dict[str, UPath]:
        return self._directories("rankings")

    @cached_property
    def _queries(self) -> dict[str, UPath]:
        return self._directories("queries")

    @cached_property
    def _plain_shards(self) -> dict[str, UPath]:
        return self._directories("plain_shards")

    @cached_property
    def _embeddings(self) -> dict[str, UPath]:
        return self._directories("embeddings")

    def _directories(self, kind: str) -> dict[str, UPath]:
        return {manifest.digest: directory for directory, manifest in manifests(self._index / kind)}


def _digests(value: Any) -> list[str]:
    """The digests in what an identity holds: one, several, or several of several; queries themselves are none."""
    if isinstance(value, str):
        return [value]
    return [digest for item in value for digest in _digests(item)] if isinstance(value, list) else []


def _summed(parts: Parts) -> dict[str, float]:
    known = {step: round(sum(took), 2) for step, took in parts.items() if None not in took}
    recurring = [step for step in parts if step != BUILD]
    if not known.keys() >= set(recurring):
        return known
    return {**known, SUM: round(sum(known[step] for step in recurring), 2)}
