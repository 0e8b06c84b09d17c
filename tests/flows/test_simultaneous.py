import pytest

from tests.flows.runs import build, files
from tests.flows.test_faults import start_index

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_two_runs_into_one_directory_at_once_both_end_and_leave_the_bytes_of_one_alone(llama, corpus, tmp_path):
    directory, alone = tmp_path / "index", tmp_path / "alone"
    build(directory, llama, corpus, shard_size=1)
    directory.rename(alone)

    processes = [start_index(directory, llama, corpus) for _ in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert files(directory) == files(alone)
