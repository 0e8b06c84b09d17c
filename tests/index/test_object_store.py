"""An index on object storage against the same index in a directory, with a real S3 server on the loopback address."""

import gc
import os
import threading

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from upath import UPath

from tests.scoring.test_score_pass import (  # noqa: F401  (the first two are fixtures)
    gradients,
    in_this_process,
    rank,
    shard_name,
    write_store,
)
from trackstar.storage.errors import CorruptionError, LockedError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import HOLDER
from trackstar.storage.manifest import damaged_files, is_complete
from trackstar.storage.removal import remove_artifact
from trackstar.storage.writer import TIMEOUT_VARIABLE, changing

# botocore and aiohttp close sockets when they are collected
pytestmark = pytest.mark.filterwarnings("default", "ignore::ResourceWarning")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket's URL; where the server is and who asks is in the environment, as for any S3 client."""
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", f"{os.environ.get('NO_PROXY', '')},127.0.0.1")
    name = f"trackstar-{port}"  # the servers of one process share their buckets
    UPath(f"s3://{name}").fs.mkdir(name)
    yield f"s3://{name}"
    S3FileSystem.clear_instance_cache()  # or the next test would ask this server
    gc.collect()  # what the clients leave unclosed is to be found here, not in another test
    s3.stop()


def test_what_was_not_written_there_is_refused_on_an_object_store_too(gradients, bucket):  # noqa: F811
    index = UPath(f"{bucket}/index")
    write_store(index, gradients)
    chunks = [index / shard_name(number) / "gradients.zarr" / "mlp.00" / "c" / "0" / "0" for number in ("0", "2")]
    chunks[0].write_bytes(chunks[1].read_bytes())
    with pytest.raises(CorruptionError, match=r"mlp.00/c/0/0 is not the chunk that was written"):
        GradientReader(index / shard_name("0")).rows("mlp.00", 0, 4)
    chunks[0].unlink()
    with pytest.raises(CorruptionError, match=r"mlp.00/c/0/0 is missing"):
        GradientReader(index / shard_name("0")).rows("mlp.00", 0, 4)
    metadata = index / shard_name("0") / "gradients.zarr" / "mlp.00" / "zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b"7", b"9"))
    with pytest.raises(CorruptionError, match=r"mlp.00/zarr.json differs"):
        GradientReader(index / shard_name("0"))


def test_ranking_from_an_object_store_is_that_of_a_directory(gradients, in_this_process, bucket):  # noqa: F811
    index = UPath(f"{bucket}/index")
    assert rank(index, gradients).equals(in_this_process)
    shard = index / shard_name("0")
    assert damaged_files(shard) == []
    assert remove_artifact(shard)
    assert not is_complete(shard, {"name": "0"})
    assert not shard.fs.find(shard.path)


def test_one_writer_at_a_time_changes_an_index_on_an_object_store(bucket, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0")
    index = UPath(f"{bucket}/index")
    refused = []

    def attempt():
        try:
            with changing(index):
                pass
        except LockedError as error:
            refused.append(str(error))

    with changing(index):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    (sentence,) = refused
    assert f"is being changed by process {os.getpid()} on " in sentence
    assert f"if that process is gone, delete {index / HOLDER}" in sentence
    attempt()
    assert len(refused) == 1
    (index / HOLDER).write_bytes(b"{}")  # as a killed writer leaves it
    attempt()
    assert len(refused) == 2
