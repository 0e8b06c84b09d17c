"""Documents out of an index: they stay on disk, and take part in nothing any more."""

from datetime import UTC, datetime

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from trackstar.flows.config import WithdrawConfig
from trackstar.storage.writer import changing
from trackstar.tasks.index.contents import Index, read_index, write_index
from trackstar.tasks.index.curvature import reduce_curvature
from trackstar.tasks.index.withdrawals import TombstoneRequest, count_withdrawn, new_withdrawal, write_tombstones


@flow(name="withdraw", flow_run_name="withdraw {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def withdraw(config: WithdrawConfig) -> Index:
    """Leave documents out of the candidates and out of R_train, and record when and why."""
    config.check()
    with changing(config.index):
        return _withdraw(config)


def _withdraw(config: WithdrawConfig) -> Index:
    index = read_index(config.index)
    store = {"index": config.index, "shards": index.shards}
    withdrawal = new_withdrawal(
        config.asked(), tombstones=index.tombstones, at=datetime.now(UTC).isoformat("T", "seconds"),
        reason=config.reason, **store,
    )  # fmt: skip
    if withdrawal is None:
        get_run_logger().info("Nothing to do: all of these documents were withdrawn before")
        return index
    tombstones = write_tombstones(
        TombstoneRequest(index=config.index, previous=index.tombstones, withdrawal=withdrawal)
    )
    autocorrelation, grams = reduce_curvature(index.curvature, tombstones=tombstones, dask=config.dask, **store)
    changed = index.model_copy(
        update={
            "autocorrelation": autocorrelation,
            "grams": grams,
            "tombstones": tombstones,
            "num_withdrawn": count_withdrawn(tombstones=tombstones, **store),
        }
    )
    write_index(changed)
    return changed
