"""Checkpoint and corpus to an index: once per checkpoint."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from trackstar.flows.config import IndexConfig
from trackstar.storage.writer import changing
from trackstar.tasks.index.contents import Index, existing_index, require_documents, require_same_settings, write_index
from trackstar.tasks.index.corpus import plan_file, plan_requests
from trackstar.tasks.index.curvature import reduce_curvature
from trackstar.tasks.index.fidelity import FidelityRequest, store_fidelity
from trackstar.tasks.index.kronecker import kronecker_factors
from trackstar.tasks.index.second_moment import second_moment
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.index.withdrawals import count_withdrawn, newest_tombstones
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.models.engine import EngineSpec
from trackstar.tasks.runtime.shards import compute_shards
from trackstar.tasks.runtime.stage import gather


# In this process shards run one after another: each uses every core or the whole GPU. Several machines take Dask.
@flow(name="index", flow_run_name="index {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=1))
def index(config: IndexConfig) -> Index:
    """Write the projected gradient of every document, and the autocorrelation R_train they have."""
    config.check()
    with changing(config.index):
        return _index(config)


def _index(config: IndexConfig) -> Index:
    curvature = config.curvature.resolve(is_white=config.gradient.has_kronecker_factors)
    existing = existing_index(config.index)
    plans = gather([plan_file.submit(request) for request in plan_requests(config.corpus)])
    corpus_shards = [shard for plan in plans for shard in plan.shards]
    bare = EngineSpec(
        index=config.index,
        checkpoint=read_checkpoint(config.checkpoint, trust_remote_code=config.model.trust_remote_code),
        model=config.model,
        gradient=config.sized_gradient(config.checkpoint),
        second_moment=None,
    )
    require_same_settings(existing, bare, config.second_moment, config.factors)
    sample = {"shards": corpus_shards, "reading": config.corpus.reading}
    known = existing and existing.engine
    V = second_moment(config.second_moment, bare, existing=known, **sample)
    kronecker = kronecker_factors(config.factors, bare, existing=known, **sample)
    engine = bare.model_copy(update={"second_moment": V, "kronecker": kronecker})
    requests = shard_requests(engine, config.corpus, corpus_shards, store_as=config.store_as)
    shards = require_documents(compute_shards(index_shard, requests, where=config.shards_on), index=config.index)
    tombstones = existing.tombstones if existing else newest_tombstones(config.index)  # withdrawn stays withdrawn
    store = {"index": config.index, "shards": shards, "tombstones": tombstones}
    autocorrelation, grams = reduce_curvature(curvature, dask=config.dask, **store)
    lost = store_fidelity(FidelityRequest(engine=engine, **store), store_as=config.store_as)
    finished = Index(
        engine=engine,
        preset=config.preset,
        corpus=config.corpus,
        curvature=curvature,
        shards=shards,
        autocorrelation=autocorrelation,
        grams=grams,
        tombstones=tombstones,
        num_withdrawn=count_withdrawn(**store),
        store_as=config.store_as,
        fidelity=lost,
    )
    write_index(finished)
    return finished
