"""The stages from the gradient store to a ranking: against the definition, and the same wherever Dask runs."""

import os
import signal

import dask
import numpy as np
import polars as pl
import pytest
from distributed import Client, LocalCluster, SchedulerPlugin
from upath import UPath

from tests.reference import influence
from trackstar.storage.digests import digest_of
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientWriter
from trackstar.storage.layout import DOCUMENTS, QUERIES, QUERY_VECTORS, RANKING
from trackstar.storage.manifest import Artifact, new_artifact, require_manifest
from trackstar.storage.matrices import write_arrays
from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.storage.tables import read_table, write_table
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.index.norms import NormWriter
from trackstar.tasks.numerics.scores import SCORE_ROUNDING
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.whitening import FactorRequest, TrainNormsRequest, write_factors, write_train_norms

DIMS = {"attention.00": 6, "mlp.00": 4}
SHARD_ROWS = (7, 0, 5, 9, 6)
NUM_QUERIES = 3
QUERY_SET = f"queries/{0:016x}"
CONFIG = ScoreConfig(mixing_weight=0.9, damping=0.1, top_k=4)
SCORES_DONE, REDUCTION_DONE = "_rank_shard", "_write_block_autocorrelation"


@pytest.fixture(scope="module")
def gradients():
    """Per block [n d] of the documents and [q d] of the queries."""
    rng = np.random.default_rng(0)
    counts = (sum(SHARD_ROWS), NUM_QUERIES)
    return [{name: rng.normal(size=(n, d)).astype(np.float32) for name, d in DIMS.items()} for n in counts]


def write_store(index, gradients):
    """The shards and the query set as indexing and encoding would leave them."""
    documents, queries = gradients
    shards, start = [], 0
    for number, count in enumerate(SHARD_ROWS):
        rows = {name: vectors[start : start + count] for name, vectors in documents.items()}
        shards.append(write_shard(index, f"{number}", rows, [f"d{start + row}" for row in range(count)]))
        start += count
    with new_artifact(index / QUERY_SET, kind="queries", identity={}) as draft:
        write_arrays(draft.path / QUERY_VECTORS, queries)
        write_table(draft.path / QUERIES, pl.DataFrame({"query_id": [f"q{n}" for n in range(NUM_QUERIES)]}))
        draft.facts["num_queries"] = NUM_QUERIES
    return tuple(shards), reference_to(index, QUERY_SET)


def write_shard(index, name, rows, ids):
    place = shard_name(name)
    with new_artifact(index / place, kind="shards", identity={"name": name}) as draft:
        writer = GradientWriter(draft.path, DIMS, max_rows=len(ids), chunk_rows=4)
        writer.append(rows)
        writer.close()
        norms = NormWriter(list(DIMS), store_as="float32")
        norms.append(rows)
        norms.close(draft)
        write_table(draft.path / DOCUMENTS, pl.DataFrame({"id": ids}, schema={"id": pl.String}))
        draft.facts |= {"num_documents": len(ids), "block_dims": DIMS}
    return reference_to(index, place)


def shard_name(name):
    return f"shards/{digest_of({'name': name})[:16]}"


def reference_to(index, name):
    manifest = require_manifest(index / name)
    return Artifact(name=name, digest=manifest.digest, facts=manifest.facts)


def rank(index, gradients, *, dask="local", config=CONFIG):
    """The ranking of a new index."""
    request = rank_request(index, gradients, dask=dask, config=config)
    return read_table(build(rank_candidates.body, request).path(str(index)), RANKING)


def rank_request(index, gradients, *, dask="local", config=CONFIG):
    """What is to be scored in a new index, after R_train and norms."""
    shards, queries = write_store(index, gradients)
    common = {"index": str(index), "shards": shards, "dask": dask}
    R = build(write_autocorrelation.body, AutocorrelationRequest(**common))
    of_factors = FactorRequest(index=str(index), autocorrelation=R, damping=config.damping, dask=dask)
    whitening = {"factors": build(write_factors.body, of_factors), **common}
    norms = build(write_train_norms.body, TrainNormsRequest(**whitening))
    return ScoreRequest(
        method="trackstar", config=config, queries=queries, train_norms=norms, spectrum=None, **whitening
    )


@pytest.fixture(scope="module")
def in_this_process(gradients, tmp_path_factory):
    return rank(UPath(tmp_path_factory.mktemp("local")), gradients)


class Killer(SchedulerPlugin):
    """Kills the worker that is first to finish a task of some function: what it had computed is lost."""

    def __init__(self, function, pids):
        self.function, self.pids, self.killed = function, pids, None

    def transition(self, key, start, finish, *args, worker=None, **kwargs):
        if self.killed is None and finish == "memory" and str(key).startswith(self.function):
            self.killed = self.pids[worker]
            os.kill(self.killed, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes; one that dies is replaced, and is not waited for as long as a distant one would be."""
    patience = dask.config.set({"distributed.comm.timeouts.connect": "5s"})
    with patience, LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def kill_one(cluster):
    """Arms a killer for the next run, and removes it afterwards."""

    def arm(function):
        with Client(cluster) as client:
            client.wait_for_workers(2)
            killer = Killer(function, client.run(os.getpid))
        cluster.scheduler.add_plugin(killer, name="killer")
        return killer

    yield arm
    cluster.scheduler.remove_plugin("killer")


@pytest.mark.numerical
def test_ranking_holds_the_best_and_worst_of_the_dense_definition(gradients, in_this_process):
    documents, queries = gradients
    expected = influence(documents.values(), queries.values(), mixing_weight=0.9, damping=CONFIG.damping)
    for kind, sign in ((PROPONENT, -1), (OPPONENT, 1)):
        for query in range(NUM_QUERIES):
            found = in_this_process.filter((pl.col("kind") == kind) & (pl.col("query_id") == f"q{query}"))
            order = np.argsort(sign * expected[:, query])[: CONFIG.top_k]
            assert found["candidate_id"].to_list() == [f"d{position}" for position in order]
            np.testing.assert_allclose(found["score"], expected[order, query], atol=SCORE_ROUNDING)


@pytest.mark.parametrize("function", [SCORES_DONE, REDUCTION_DONE])
def test_ranking_is_the_same_after_a_cluster_lost_a_worker_in_the_middle(
    gradients, in_this_process, tmp_path, cluster, kill_one, function
):
    killer = kill_one(function)
    ranking = rank(UPath(tmp_path), gradients, dask=cluster.scheduler_address)
    assert killer.killed is not None
    assert ranking.equals(in_this_process)
    assert not cluster.scheduler.tasks  # nothing of ours stays on a cluster that others use


def test_wrong_settings_come_back_from_a_worker_as_what_they_are(gradients, tmp_path, cluster):
    none_left = [{name: np.zeros_like(rows) for name, rows in part.items()} for part in gradients]
    with pytest.raises(InputError, match="mean eigenvalue of R is 0"):
        rank(UPath(tmp_path), none_left, dask=cluster.scheduler_address)


def test_an_address_without_a_scheduler_is_named(gradients, tmp_path, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.runtime.dask_cluster.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(InputError, match="no Dask scheduler answers at 'tcp://127"):
        rank(UPath(tmp_path), gradients, dask="tcp://127.0.0.1:9")
