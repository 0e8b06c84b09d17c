import numpy as np
import pytest
from upath import UPath

from tests.flows.runs import files
from trackstar.storage.gradients import GradientWriter
from trackstar.storage.manifest import Artifact, new_artifact, require_manifest
from trackstar.storage.matrices import read_arrays
from trackstar.tasks.index.curvature import AutocorrelationRequest, read_autocorrelation, write_autocorrelation
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.whitening import SpectrumRequest, write_spectrum

DIMS = {"attention.00": 6, "mlp.00": 4}


@pytest.fixture
def shards(tmp_path):
    """Three shards of random rows, one of them empty."""
    rng = np.random.default_rng(0)
    return tuple(
        write_shard(tmp_path, name, rng, count) for name, count in {"a" * 16: 7, "b" * 16: 0, "c" * 16: 5}.items()
    )


def write_shard(index, name, rng, count):
    with new_artifact(UPath(index) / "shards" / name, kind="shards", identity={"name": name}) as draft:
        writer = GradientWriter(draft.path, DIMS, max_rows=count, chunk_rows=4)
        writer.append({block: rng.normal(size=(count, dims)).astype(np.float32) for block, dims in DIMS.items()})
        writer.close()
        draft.facts |= {"num_documents": count, "block_dims": DIMS}
    manifest = require_manifest(UPath(index) / "shards" / name)
    return Artifact(name=f"shards/{name}", digest=manifest.digest, facts=manifest.facts)


def test_autocorrelation_has_the_same_bytes_from_threads_and_from_processes(shards, tmp_path):
    written = []
    for dask in ("local", "processes"):
        request = AutocorrelationRequest(index=str(tmp_path), shards=shards, dask=dask)
        directory = build(write_autocorrelation.body, request).path(str(tmp_path))
        written.append(files(tmp_path / "autocorrelation"))
        directory.rename(tmp_path / f"set aside {dask}")
    assert written[0] == written[1]
    assert {name for name in written[0] if name.endswith("/c/0/0")}  # there are matrices in it


@pytest.mark.numerical
def test_the_spectrum_is_the_same_by_documents_as_by_dimensions(shards, tmp_path):
    """With fewer documents than dimensions, the eigenvalues come from the smaller product."""
    for few in (shards, shards[2:]):
        autocorrelation = build(write_autocorrelation.body, AutocorrelationRequest(index=str(tmp_path), shards=few))
        request = SpectrumRequest(index=str(tmp_path), shards=few, autocorrelation=autocorrelation)
        found = read_arrays(build(write_spectrum.body, request).path(str(tmp_path)), "spectrum.safetensors")
        for block, values in found.items():
            R = read_autocorrelation(autocorrelation.path(str(tmp_path)), block)
            np.testing.assert_allclose(values, np.linalg.eigvalsh(R)[::-1], atol=1e-12)
