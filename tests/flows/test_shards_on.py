import pytest
from distributed import LocalCluster

from tests.flows.runs import build, files, index_config, task_states
from trackstar.storage.errors import InputError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("default")  # distributed warns about the time its processes take to come and go
def test_shards_computed_on_two_dask_workers_are_the_bytes_of_those_computed_here(llama, corpus, tmp_path, cluster):
    from trackstar.flows.index import index

    directory, here = tmp_path / "index", tmp_path / "here"
    build(directory, llama, corpus, shard_size=3)
    directory.rename(here)
    on_dask = index_config(directory, llama, corpus, shard_size=3, shards_on=cluster)
    first = task_states(index, on_dask)
    assert sum(state == "Completed" for name, state in first if "rows" in name) == 8
    assert files(directory) == files(here)
    assert {state for _, state in task_states(index, on_dask)} == {"Cached"}


def test_a_scheduler_that_does_not_answer_is_refused_by_its_address(llama, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.runtime.dask_cluster.CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(InputError, match="no Dask scheduler answers at 'tcp"):
        build(tmp_path / "index", llama, corpus, shards_on="tcp://127.0.0.1:9")
