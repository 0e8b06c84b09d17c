"""A training run's new checkpoints to indexes, answers to the standing queries, and what moved since the last one."""

from collections.abc import Sequence

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.flows.attribute import attribute
from trackstar.flows.config import AttributeConfig, IndexConfig, ReindexConfig
from trackstar.flows.index import index
from trackstar.storage.errors import InputError
from trackstar.storage.layout import RESULTS, location
from trackstar.storage.queries import read_queries
from trackstar.tasks.index.contents import existing_index, missing_artifacts
from trackstar.tasks.models.checkpoint import Checkpoint
from trackstar.tasks.reindex.checkpoints import (
    Asked,
    Found,
    asked_of,
    find_checkpoints,
    identify,
    index_name,
    newest,
    previous_results,
    remove_old_indexes,
    write_asked,
)
from trackstar.tasks.reindex.drift import measure_drift, publish_drift, write_drift


class Reindexed(BaseModel):
    """What one run of ``reindex`` did, by name: empty lists where there was nothing to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    indexed: list[str]
    asked: list[str]
    drifts: list[str]
    removed: list[str]
    waiting: dict[str, str]

    @property
    def is_idle(self) -> bool:
        return not (self.indexed or self.asked or self.removed)


@flow(name="reindex", flow_run_name="reindex {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def reindex(config: ReindexConfig) -> Reindexed:
    """Index every whole checkpoint that has no index yet, ask the standing queries, and report what moved."""
    config.check()
    logger = get_run_logger()
    found = find_checkpoints(config.checkpoints)
    done = Reindexed(
        indexed=[], asked=[], drifts=[], removed=[], waiting={c.name: c.missing for c in found if c.missing}
    )
    for name, missing in done.waiting.items():
        logger.warning("%s is left for next time: %s", name, missing)
    refused = _refusals(found, config)
    for name, refusal in refused.items():
        logger.error("%s is left out: %s", name, refusal)
    kept = newest([checkpoint for checkpoint in found if checkpoint.name not in refused], config.keep_last)
    names = {_bring_up_to_date(checkpoint, config, done) for checkpoint in kept}
    # Fewer than that may mean a directory that is not mounted; nothing is removed on such evidence.
    if config.keep_last is not None and len(kept) == config.keep_last:
        done.removed.extend(remove_old_indexes(config.indexes, checkpoints=config.checkpoints, kept=names))
    if refused:  # last, so that one checkpoint does not keep others from their index
        raise InputError(
            f"{len(refused)} of {len(found)} checkpoints cannot be indexed: {next(iter(refused.values()))}"
        )
    if done.is_idle:
        logger.info("Nothing to do: %d whole checkpoints in %s, all indexed", len(kept), config.checkpoints)
    return done


def _refusals(found: Sequence[Found], config: ReindexConfig) -> dict[str, str]:
    """Why whole checkpoints cannot be indexed, by name; before any of them is."""
    refused = {}
    for checkpoint in found:
        if checkpoint.missing is None:
            try:
                _index_config(config, checkpoint, config.indexes).check()
            except InputError as error:
                refused[checkpoint.name] = str(error)
    return refused


def _bring_up_to_date(found: Found, config: ReindexConfig, done: Reindexed) -> str:
    """Index one checkpoint and ask it the standing queries, unless that has been done; return its index's name."""
    checkpoint = identify(found, trust_remote_code=config.model.trust_remote_code)
    name = index_name(checkpoint)
    directory = str(location(config.indexes) / name)
    existing = existing_index(directory)
    if existing is None or missing_artifacts(existing):
        index(_index_config(config, found, directory))
        done.indexed.append(name)
    if config.queries is not None:
        _ask(found, checkpoint, config, done)
    return name


def _ask(found: Found, checkpoint: Checkpoint, config: ReindexConfig, done: Reindexed) -> None:
    name = index_name(checkpoint)
    results = location(config.indexes) / RESULTS / name
    queries = tuple(read_queries(config.queries))
    asked = Asked(
        checkpoints=config.checkpoints,
        name=found.name,
        step=found.step,
        digest=checkpoint.digest,
        queries=queries,
        score=config.score,
    )
    if asked_of(results) == asked:
        return
    attribute(
        AttributeConfig(
            index=str(location(config.indexes) / name),
            queries=config.queries,
            out=str(results),
            score=config.score,
            dask=config.dask,
        )
    )
    _report_drift(results, asked, done)
    done.asked.append(name)


def _report_drift(results: UPath, asked: Asked, done: Reindexed) -> None:
    """Compare with the checkpoint before; the first one of a directory has none."""
    previous = previous_results(results.parent, asked)
    if previous is not None:
        drift = measure_drift(previous, results, asked)
        write_drift(drift, results)
        publish_drift(drift)
        done.drifts.append(results.name)
    write_asked(results, asked)  # last: without it the next run does all of this again


def _index_config(config: ReindexConfig, found: Found, directory: str) -> IndexConfig:
    shared = {name: getattr(config, name) for name in IndexConfig.model_fields if name in ReindexConfig.model_fields}
    return IndexConfig(checkpoint=found.path, index=directory, **shared)
