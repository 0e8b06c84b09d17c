"""What a dry run predicts is what then happens."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.flows.runs import build as build_index
from tests.flows.runs import files
from tests.tiny import TEXTS
from trackstar.flows.cli.commands import app
from trackstar.storage.corpus import plan_shards
from trackstar.storage.errors import InputError
from trackstar.storage.manifest import Artifact
from trackstar.tasks.index.budget import Budget, BudgetRequest, predict
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.models.checkpoint import read_checkpoint
from trackstar.tasks.models.engine import EngineSpec, open_engine
from trackstar.tasks.runtime.stage import build

NUM_DOCUMENTS = 900
SHARD_SIZE = 256


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Documents of different lengths: one to four sentences."""
    path = tmp_path / "corpus.jsonl"
    texts = (" ".join(TEXTS[(7 * row + n) % len(TEXTS)] for n in range(1 + row % 4)) for row in range(NUM_DOCUMENTS))
    path.write_text("".join(json.dumps({"id": f"d{row}", "text": text}) + "\n" for row, text in enumerate(texts)))
    return path


def request(checkpoint, corpus, *, dim=32, mode="auto", dtype="float32") -> BudgetRequest:
    return BudgetRequest.model_validate(
        {
            "checkpoint": str(checkpoint),
            "corpus": {"paths": [str(corpus)], "shard_size": SHARD_SIZE},
            "model": {"device": "cpu"},
            "gradient": {"projection_dim": dim},
            "second_moment": {"mode": mode},
            "store_as": dtype,
        }
    )


def size_bytes(directory: Path) -> int:
    return sum(map(len, files(directory).values())) if directory.exists() else 0


@pytest.mark.parametrize(("mode", "dtype"), [("auto", "float32"), ("estimated", "float16")])
def test_disk_and_tokens_are_predicted(prefect_server, llama, corpus, tmp_path, mode, dtype):
    predicted = predict(request(llama, corpus, mode=mode, dtype=dtype))
    index = build_index(
        tmp_path / "index", llama, corpus, shard_size=SHARD_SIZE, mode=mode,
        gradient={"projection_dim": 32}, store_as=dtype,
    )  # fmt: skip
    assert predicted.num_documents == NUM_DOCUMENTS
    # every document of four shards was sampled
    assert (predicted.num_tokens, predicted.num_tokens_error) == (index.total("num_tokens"), 0)
    parts = {"shards": ("gradients", "documents"), "autocorrelation": ("R_train",), "second_moment": ("second moment",)}
    for directory, names in parts.items():
        actual, expected = size_bytes(index.path / directory), sum(predicted.disk_bytes[name] for name in names)
        # headers and manifests, some kilobytes, are not predicted; texts compress better the more there are
        assert abs(expected - actual) < 0.03 * actual + 8192, directory


def index_all(spec: EngineSpec, request: BudgetRequest) -> tuple[Artifact, ...]:
    shards = [shard for file in request.corpus.files() for shard in plan_shards(file, shard_size=SHARD_SIZE)]
    requests = shard_requests(spec, request.corpus, shards, store_as=request.store_as)
    return tuple(build(index_shard.body, shard_request) for shard_request in requests)


def bare_spec(request: BudgetRequest, index: Path) -> EngineSpec:
    checkpoint = read_checkpoint(request.checkpoint)
    common = {"model": request.model, "gradient": request.gradient, "second_moment": None}
    return EngineSpec(index=str(index), checkpoint=checkpoint, **common)


def test_the_time_of_the_gradients_is_predicted_within_a_factor_of_two(llama, corpus, tmp_path):
    asked = request(llama, corpus, mode="none")
    predicted = predict(asked, clock=time.process_time)
    spec = bare_spec(asked, tmp_path / "index")
    with open_engine(spec):
        pass  # loading is predicted apart
    started = time.process_time()
    index_all(spec, asked)
    actual = time.process_time() - started
    assert actual / 2 < predicted.seconds["gradients"] < actual * 2


MEASURE = """
import json, multiprocessing, sys
from pathlib import Path
from tests.index.test_budget import bare_spec, index_all
from trackstar.tasks.index.budget import BudgetRequest, predict
from trackstar.tasks.index.curvature import AutocorrelationRequest, write_autocorrelation
from trackstar.tasks.index.probe import peak_memory_bytes
from trackstar.tasks.runtime.stage import build

def apart(function):
    # a fork starts with the memory of the imports, and has a peak of its own
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(function()))
    process.start()
    result = queue.get()
    process.join()
    return result

def indexed():
    shards = index_all(bare_spec(request, Path(sys.argv[2])), request)
    build(write_autocorrelation.body, AutocorrelationRequest(index=sys.argv[2], shards=shards))
    return peak_memory_bytes()

request = BudgetRequest.model_validate_json(sys.argv[1])
print(json.dumps([apart(peak_memory_bytes), apart(lambda: predict(request).memory_bytes), apart(indexed)]))
"""


def test_peak_memory_is_predicted_within_a_factor_of_two(llama, corpus, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus.read_text().splitlines(keepends=True)[:300]))  # memory depends on no more of them
    asked = request(llama, few, dim=48, mode="none")
    command = [sys.executable, "-c", MEASURE, asked.model_dump_json(), str(tmp_path / "index")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imports, predicted, actual = json.loads(done.stdout.splitlines()[-1])
    assert (actual - imports) / 2 < predicted - imports < (actual - imports) * 2


def test_a_dry_run_prints_the_prediction_and_writes_nothing(llama, corpus, tmp_path):
    index = tmp_path / "index"
    arguments = ["--checkpoint", str(llama), "--corpus", str(corpus), "--index", str(index), "--device", "cpu"]
    before = files(tmp_path)
    result = CliRunner().invoke(app, ["index", *arguments, "--projection-dim", "4", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"{NUM_DOCUMENTS:,}" in result.output
    for part in ("gradients", "R_train", "second moment", "peak memory"):
        assert part in result.output
    assert files(tmp_path) == before


def test_a_sample_smaller_than_the_corpus_states_its_error(llama, corpus, tmp_path):
    asked = request(llama, corpus, dim=4, mode="none")
    small = asked.model_copy(update={"corpus": asked.corpus.model_copy(update={"shard_size": 30})})
    predicted: Budget = predict(small)
    exact = predict(asked).num_tokens
    assert predicted.num_sampled == 240
    assert 0 < predicted.num_tokens_error < 0.1 * exact
    assert abs(predicted.num_tokens - exact) < 4 * predicted.num_tokens_error


def test_a_corpus_without_documents_is_refused(llama, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "d0", "text": ""}\n')
    with pytest.raises(InputError, match="usable document"):
        predict(request(llama, tmp_path / "corpus.jsonl"))
