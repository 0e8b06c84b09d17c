"""A training run's new checkpoints to indexes, answers to the standing queries, and what moved since the last one."""

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.flows.attribute import attribute
from trackstar.flows.config import AttributeConfig, IndexConfig, ReindexConfig
from trackstar.flows.index import index
from trackstar.flows.withdraw import hold_withdrawals, standing_withdrawals, withdraw_beforehand
from trackstar.storage.current import promote, serving_of, spared
from trackstar.storage.errors import InputError, PartlyDoneError, StorageError
from trackstar.storage.layout import RESULTS, location
from trackstar.storage.queries import read_queries
from trackstar.storage.writer import changing
from trackstar.tasks.index.contents import existing_index, missing_artifacts, read_index
from trackstar.tasks.models.checkpoint import Checkpoint, read_checkpoint
from trackstar.tasks.reindex.checkpoints import (
    Asked,
    Found,
    asked_of,
    distinct,
    find_checkpoints,
    index_name,
    is_later,
    previous_results,
    remove_old_indexes,
    write_asked,
)
from trackstar.tasks.reindex.drift import measure_drift, publish_drift, write_drift
from trackstar.tasks.reindex.gates import decision_of, measure_gates, write_decision

Result = TypeVar("Result")


class Reindexed(BaseModel):
    """What one run of ``reindex`` did, by name: empty lists where there was nothing to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    indexed: list[str]
    asked: list[str]
    drifts: list[str]
    removed: list[str]
    promoted: list[str] = []
    waiting: dict[str, str]
    held: dict[str, str] = {}
    failed: dict[str, str] = {}

    @property
    def is_idle(self) -> bool:
        return not (self.indexed or self.asked or self.removed or self.promoted or self.held or self.failed)


@flow(name="reindex", flow_run_name="reindex {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def reindex(config: ReindexConfig) -> Reindexed:
    """Index every whole checkpoint that has no index yet, ask the standing queries, and report what moved.

    An index that holds to its gates then serves. The one that served before stays, for a rollback.

    Raises:
        PartlyDoneError: Some checkpoints could not be indexed or asked, or do not hold; the others are done.
    """
    config.check()
    logger = get_run_logger()
    found = find_checkpoints(config.checkpoints)
    done = Reindexed(
        indexed=[], asked=[], drifts=[], removed=[], waiting={c.name: c.missing for c in found if c.missing}
    )
    for name, missing in done.waiting.items():
        logger.warning("%s is left for next time: %s", name, missing)
    kept = distinct(
        found,
        config.keep_last,
        identify=lambda checkpoint: _attempt(checkpoint, _identify, config, done),
        indexes=config.indexes,
    )
    names = {_attempt(checkpoint, _bring_up_to_date, identity, config, done) for checkpoint, identity in kept} - {None}
    # Fewer than that may mean a directory that is not mounted; nothing is removed on such evidence.
    if config.keep_last is not None and len(names) == config.keep_last:
        kept_names = names | spared(location(config.indexes))
        done.removed.extend(remove_old_indexes(config.indexes, checkpoints=config.checkpoints, kept=kept_names))
    if done.failed or done.held:  # last, so that one checkpoint does not keep others from their index
        raise PartlyDoneError(_sentence(done, len(found)), done)
    if done.is_idle:
        logger.info("Nothing to do: %d whole checkpoints in %s, all indexed", len(kept), config.checkpoints)
    return done


def _sentence(done: Reindexed, num_found: int) -> str:
    told = [
        (done.failed, f"{len(done.failed)} of {num_found} checkpoints failed, the others are done"),
        (done.held, "held back by its gates, so that what served still serves"),
    ]
    reasons = [(words, "; ".join(f"{name}: {reason}" for name, reason in of.items())) for of, words in told if of]
    return ". ".join(f"{words}: {reason}" for words, reason in reasons)


def _attempt(found: Found, step: Callable[..., Result], *arguments: Any) -> Result | None:
    """Take a step for one checkpoint; what goes wrong is noted under its name, and the others have their turn."""
    done: Reindexed = arguments[-1]
    try:
        return step(found, *arguments)
    except Exception as error:  # whatever it is: a checkpoint that vanished, another kind of model, a full disk
        done.failed[found.name] = str(error) or type(error).__name__
        is_known = isinstance(error, InputError | StorageError | OSError)
        get_run_logger().error("%s is left out: %s", found.name, error, exc_info=None if is_known else error)
        return None


def _identify(found: Found, config: ReindexConfig, _: Reindexed) -> Checkpoint:
    """The checkpoint by its content, of which every byte is read, once it is known that it can be indexed."""
    _index_config(config, found, config.indexes).check_checkpoint()
    return read_checkpoint(found.path, trust_remote_code=config.model.trust_remote_code)


def _bring_up_to_date(found: Found, checkpoint: Checkpoint, config: ReindexConfig, done: Reindexed) -> str:
    """Index one checkpoint and ask it the standing queries, unless that has been done; return its index's name."""
    name = index_name(checkpoint)
    directory = str(location(config.indexes) / name)
    standing = standing_withdrawals(location(config.indexes))
    existing = existing_index(directory)
    if existing is None or missing_artifacts(existing):
        withdraw_beforehand(directory, standing)
        index(_index_config(config, found, directory))
        done.indexed.append(name)
    hold_withdrawals(directory, standing, dask=config.dask)
    if config.queries is not None:
        _ask(found, checkpoint, config, done)
    _decide(found, directory, config, done)
    return name


def _decide(found: Found, directory: str, config: ReindexConfig, done: Reindexed) -> None:
    """Let a new index serve if it holds to its gates; each is decided once, until the bounds change."""
    indexes, name = location(config.indexes), location(directory).name
    results, now = indexes / RESULTS, serving_of(indexes)
    decided = decision_of(results / name)
    if (decided is not None and decided.settings == config.gates) or (
        now is not None and name in (now.index, *now.held)
    ):
        return
    serving = read_index(str(indexes / now.index)) if now is not None else None
    serving_results = results / now.index if now is not None else None
    if serving is not None and not is_later(found, serving, results=serving_results, checkpoints=config.checkpoints):
        return
    decision = measure_gates(
        read_index(directory), results / name, serving=serving, serving_results=serving_results, settings=config.gates
    )
    if not decision.holds:
        done.held[name] = decision.failures
        get_run_logger().error("%s does not serve: %s", name, decision.failures)
    elif config.promotion == "auto":
        with changing(indexes):  # a withdrawal from all of them that has come meanwhile holds first
            hold_withdrawals(directory, standing_withdrawals(indexes), dask=config.dask)
            promote(indexes, name, by="reindex", gates=tuple(gate.model_dump() for gate in decision.gates))
        done.promoted.append(name)
    write_decision(results / name, decision)  # last: without it the next run decides again


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
        num_withdrawn=read_index(str(location(config.indexes) / name)).num_withdrawn,
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
