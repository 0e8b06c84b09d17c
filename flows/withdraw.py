"""Documents out of an index, or out of every index of a directory: they stay on disk, and take part in nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.flows.config import WithdrawConfig
from trackstar.storage.layout import RESULTS, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.results import answers_with
from trackstar.storage.standing import read_standing, write_standing
from trackstar.storage.verification import index_names
from trackstar.storage.writer import changing
from trackstar.tasks.index.contents import Index, read_index, write_index
from trackstar.tasks.index.curvature import reduce_curvature
from trackstar.tasks.index.withdrawals import (
    TombstoneRequest,
    Withdrawal,
    count_withdrawn,
    documents_left,
    new_standing_withdrawal,
    new_withdrawal,
    newest_tombstones,
    pending,
    write_tombstones,
)


class WithdrawnEverywhere(BaseModel):
    """What a withdrawal from a directory of indexes did.

    Attributes:
        indexes: Those that documents were taken out of, by name.
        answers: Result directories that showed one of the documents before, with the queries; None: cannot be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: str
    num_withdrawn: int
    indexes: list[str]
    answers: dict[str, list[str] | None]


@flow(name="withdraw", flow_run_name="withdraw {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def withdraw(config: WithdrawConfig) -> Index | WithdrawnEverywhere:
    """Leave documents out of the candidates and out of R_train, and record when and why."""
    config.check()
    with changing(config.index):
        return _withdraw_from_one(config) if config.is_of_one else _withdraw_from_all(config)


def _withdraw_from_one(config: WithdrawConfig) -> Index:
    index = read_index(config.index)
    withdrawal = new_withdrawal(
        config.asked(), index=config.index, shards=index.shards, tombstones=index.tombstones, at=_now(),
        reason=config.reason,
    )  # fmt: skip
    if withdrawal is None:
        get_run_logger().info("Nothing to do: all of these documents were withdrawn before")
        return index
    return _take_out(index, [withdrawal], dask=config.dask)


def _withdraw_from_all(config: WithdrawConfig) -> WithdrawnEverywhere:
    """Record the withdrawal first: a run that is killed after that has only to be run again."""
    indexes, names = location(config.index), index_names(location(config.index))
    standing = standing_withdrawals(indexes)
    left = [_left(read_index(str(indexes / name))) for name in names]
    withdrawal = new_standing_withdrawal(
        config.asked(), standing=standing, present=left, at=_now(), reason=config.reason
    )
    if withdrawal is not None:
        standing.append(withdrawal)
        write_standing(indexes, [one.model_dump(mode="json") for one in standing])
    changed = [name for name in names if hold_withdrawals(str(indexes / name), standing, dask=config.dask)]
    return WithdrawnEverywhere(
        directory=str(indexes),
        num_withdrawn=sum(len(one.ids) for one in standing),
        indexes=changed,
        answers=answers_with(indexes / RESULTS, set(config.asked())),
    )


def standing_withdrawals(indexes: UPath) -> list[Withdrawal]:
    """What was withdrawn from every index of a directory, present and future."""
    return [Withdrawal.model_validate(withdrawal) for withdrawal in read_standing(indexes)]


def hold_withdrawals(directory: str, standing: Sequence[Withdrawal], *, dask: str) -> bool:
    """Take out of an index what was withdrawn from every index; whether there was anything to do."""
    with changing(directory):
        index = read_index(directory)
        missing = pending(standing, _left(index))
        if missing:
            _take_out(index, missing, dask=dask)
        return bool(missing)


def withdraw_beforehand(directory: str, standing: Sequence[Withdrawal]) -> None:
    """Put the tombstones where an index is to be built, which then never holds the documents."""
    if standing:
        with changing(directory):
            before = newest_tombstones(directory)
            if before is None:
                _bury(directory, None, standing)


def _take_out(index: Index, withdrawals: Sequence[Withdrawal], *, dask: str) -> Index:
    directory = str(index.path)
    tombstones = _bury(directory, index.tombstones, withdrawals)
    store = {"index": directory, "shards": index.shards, "tombstones": tombstones}
    autocorrelation, grams = reduce_curvature(index.curvature, dask=dask, **store)
    changed = index.model_copy(
        update={
            "autocorrelation": autocorrelation,
            "grams": grams,
            "tombstones": tombstones,
            "num_withdrawn": count_withdrawn(**store),
        }
    )
    write_index(changed)
    return changed


def _bury(directory: str, tombstones: Artifact | None, withdrawals: Sequence[Withdrawal]) -> Artifact | None:
    """The table of tombstones with these withdrawals at its end, the oldest first."""
    for withdrawal in withdrawals:
        tombstones = write_tombstones(TombstoneRequest(index=directory, previous=tombstones, withdrawal=withdrawal))
    return tombstones


def _left(index: Index) -> set[str]:
    return documents_left(index=str(index.path), shards=index.shards, tombstones=index.tombstones)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")
