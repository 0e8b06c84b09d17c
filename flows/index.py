"""Checkpoint and corpus to an index: once per checkpoint."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import IndexConfig
from tasks.checkpoint import read_checkpoint
from tasks.corpus import plan_file, plan_requests
from tasks.curvature import reduce_curvature
from tasks.engine import EngineSpec
from tasks.gradients import index_shard, shard_requests
from tasks.index import Index, existing_index, require_documents, require_same_settings, write_index
from tasks.second_moment import second_moment
from tasks.shard_runner import compute_shards
from tasks.stage import gather
from tasks.tombstones import count_withdrawn, newest_tombstones


# In this process shards run one after another: each uses every core or the whole GPU. Several machines take Dask.
@flow(name="index", flow_run_name="index {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def index(config: IndexConfig) -> Index:
    """Write the projected gradient of every document, and the autocorrelation R_train they have."""
    config.check()
    existing = existing_index(config.index)
    plans = gather([plan_file.submit(request) for request in plan_requests(config.corpus)])
    corpus_shards = [shard for plan in plans for shard in plan.shards]
    bare = EngineSpec(
        index=config.index,
        checkpoint=read_checkpoint(config.checkpoint),
        model=config.model,
        gradient=config.gradient,
        second_moment=None,
    )
    require_same_settings(existing, bare, config.second_moment)
    V = second_moment(
        config.second_moment,
        bare,
        shards=corpus_shards,
        text_column=config.corpus.text_column,
        existing=existing and existing.engine,
    )
    engine = bare.model_copy(update={"second_moment": V})
    requests = shard_requests(engine, config.corpus, corpus_shards, dtype=config.store_dtype)
    shards = require_documents(compute_shards(index_shard, requests, where=config.shards_on), index=config.index)
    tombstones = existing.tombstones if existing else newest_tombstones(config.index)  # withdrawn stays withdrawn
    store = {"index": config.index, "shards": shards, "tombstones": tombstones}
    autocorrelation, grams = reduce_curvature(config.curvature, dask=config.dask, **store)
    finished = Index(
        engine=engine,
        corpus=config.corpus,
        curvature=config.curvature,
        shards=shards,
        autocorrelation=autocorrelation,
        grams=grams,
        tombstones=tombstones,
        num_withdrawn=count_withdrawn(**store),
    )
    write_index(finished)
    return finished
