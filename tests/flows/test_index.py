import gzip
import json
import os
import shutil
import time

import numpy as np
import polars as pl
import pytest
import zstandard
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from tests.flows.runs import build, files, index_config, modification_times, task_states
from tests.tiny import TEXTS
from trackstar.flows.index import index
from trackstar.storage.errors import InputError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import DOCUMENTS, QUARANTINE
from trackstar.tasks.evaluation.costs import index_seconds
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.models.engine import Engine

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def computed(monkeypatch):
    """How many documents went through the model, a number a batch."""
    counts, compute = [], Engine.gradients

    def counting(self, sequences, **options):
        counts.append(len(sequences))
        return compute(self, sequences, **options)

    monkeypatch.setattr(Engine, "gradients", counting)
    return counts


def documents(index):
    return pl.concat([pl.read_parquet(str(path / DOCUMENTS)) for path in index.shard_paths])


def write_lines(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def line(text, **more):
    return json.dumps({"text": text, **more}).encode()


def test_the_second_run_finds_everything_cached_and_computes_nothing(llama, corpus, tmp_path, computed):
    config = index_config(tmp_path / "index", llama, corpus)
    first = task_states(index, config)
    assert {state for _, state in first} == {"Completed"}
    assert sum(computed) == len(TEXTS)
    before = files(tmp_path / "index"), modification_times(tmp_path / "index" / "shards")
    assert task_states(index, config) == [(name, "Cached") for name, _ in first]
    assert sum(computed) == len(TEXTS)
    assert (files(tmp_path / "index"), modification_times(tmp_path / "index" / "shards")) == before


def test_what_an_index_took_is_known_from_prefect_and_only_there(llama, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trackstar.tasks.evaluation.costs.RUNS_AT_ONCE", 2
    )  # so that there is more than one page of them
    checkpoint = shutil.copytree(llama, tmp_path / "of-its-own")  # no other test's runs have its name
    config = index_config(tmp_path / "index", checkpoint, corpus)
    started = time.monotonic()
    task_states(index, config)
    took, elapsed = index_seconds(read_index(config.index)), time.monotonic() - started
    assert 0 < took < elapsed
    task_states(index, config)
    assert index_seconds(read_index(config.index)) == took  # what was cached took nothing
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    assert index_seconds(read_index(str(tmp_path / "copy"))) is None
    found = read_index(config.index)
    shards_of_another_prefect = (*found.shards, found.shards[0])
    assert index_seconds(found.model_copy(update={"shards": shards_of_another_prefect})) is None


def test_another_machine_with_the_same_storage_plans_the_corpus_and_finds_the_rest_cached(
    llama, corpus, tmp_path, computed
):
    build(tmp_path / "index", llama, corpus)
    before = files(tmp_path / "index")
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "another cache"}):
        states = task_states(index, index_config(tmp_path / "index", llama, corpus))
    assert {name for name, state in states if state != "Cached"} == {"plan part-0.jsonl", "plan part-1.jsonl"}
    assert sum(computed) == len(TEXTS)
    assert files(tmp_path / "index") == before


def test_a_corpus_that_was_only_touched_moved_or_compressed_is_not_computed_again(llama, corpus, tmp_path, computed):
    build(tmp_path / "index", llama, corpus)
    os.utime(corpus / "part-0.jsonl", (0, 0))
    plain = corpus / "part-1.jsonl"
    (corpus / "part-1.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    corpus.rename(tmp_path / "elsewhere")
    build(tmp_path / "index", llama, tmp_path / "elsewhere")
    assert sum(computed) == len(TEXTS)


def test_a_changed_file_is_indexed_again_alone_and_its_old_shards_go(llama, corpus, tmp_path, computed):
    before = build(tmp_path / "index", llama, corpus, shard_size=5)
    last = (corpus / "part-1.jsonl").read_bytes().splitlines()
    write_lines(corpus / "part-1.jsonl", [*last[:5], line("Quite another text.", id="new"), *last[6:]])
    after = build(tmp_path / "index", llama, corpus, shard_size=5)
    assert sum(computed) == len(TEXTS) + 5
    assert [a == b for a, b in zip(after.shards, before.shards, strict=True)] == [True, True, True, False]
    assert {path.name for path in (tmp_path / "index" / "shards").iterdir()} == {p.name for p in after.shard_paths}
    assert "new" in documents(after)["id"]


def test_a_deleted_shard_is_computed_again_alone_with_the_same_bytes(llama, corpus, tmp_path, computed):
    built = build(tmp_path / "index", llama, corpus)
    before, times = files(tmp_path / "index"), modification_times(tmp_path / "index")
    victim = built.shards[1]
    shutil.rmtree(tmp_path / "index" / victim.name)
    build(tmp_path / "index", llama, corpus)
    assert sum(computed) == len(TEXTS) + victim.facts["num_documents"]
    assert files(tmp_path / "index") == before
    new_times = modification_times(tmp_path / "index")
    assert {name for name in times if times[name] != new_times[name]} == {
        name for name in times if name.startswith(victim.name) or name == "index.json"
    }


def test_bad_documents_are_set_aside_with_their_reason_and_change_no_neighbour(llama, tmp_path):
    good = [line(TEXTS[0], id="g0"), line(TEXTS[1], id="g1")]
    bad = [b'{"text": "cut sh', b'{"text": "\xff\xfe"}', line("", id="b2"), line(7, id="b3"), b"[1]", b'{"id": "b5"}']
    write_lines(tmp_path / "mixed.jsonl", [good[0], *bad, good[1]])
    write_lines(tmp_path / "clean.jsonl", good)
    mixed = build(tmp_path / "mixed", llama, tmp_path / "mixed.jsonl", shard_size=100)
    clean = build(tmp_path / "clean", llama, tmp_path / "clean.jsonl", shard_size=100)
    quarantine = pl.read_parquet(str(mixed.shard_paths[0] / QUARANTINE))
    assert quarantine["row"].to_list() == [1, 2, 3, 4, 5, 6]
    assert quarantine["id"].to_list() == [None, None, "b2", "b3", None, "b5"]
    for reason, words in zip(
        quarantine["reason"], ["malformed", "UTF-8", "empty", "integer", "a list", "no column 'text'"], strict=True
    ):
        assert words in reason
    assert mixed.shards[0].facts["num_quarantined"] == 6
    assert documents(mixed).drop("row").equals(documents(clean).drop("row"))
    for block in mixed.block_dims:
        rows = [GradientReader(index.shard_paths[0]).rows(block, 0, 2) for index in (mixed, clean)]
        np.testing.assert_array_equal(*rows)


def test_a_shard_of_bad_documents_alone_is_counted_and_not_computed_again(llama, tmp_path, computed):
    write_lines(tmp_path / "c.jsonl", [line(""), line(""), line(TEXTS[0]), line(TEXTS[1])])
    config = index_config(tmp_path / "index", llama, tmp_path / "c.jsonl", shard_size=2)
    index(config)
    before = files(tmp_path / "index")
    assert {state for _, state in task_states(index, config)} == {"Cached"}
    assert index(config).total("num_quarantined") == 2
    assert files(tmp_path / "index") == before


def test_a_corpus_without_a_usable_document_is_refused(llama, tmp_path):
    write_lines(tmp_path / "c.jsonl", [line(""), b"?"])
    with pytest.raises(InputError, match=r"no usable document; row 0 of .*: empty text"):
        build(tmp_path / "index", llama, tmp_path / "c.jsonl", mode="factored")
    assert not (tmp_path / "index" / "index.json").exists()


def test_an_empty_file_beside_others_adds_nothing(llama, corpus, tmp_path):
    (corpus / "part-0a.jsonl").touch()
    assert documents(build(tmp_path / "index", llama, corpus))["id"].to_list() == [f"d{n}" for n in range(len(TEXTS))]


def test_compressed_and_columnar_files_hold_the_same_documents(llama, corpus, tmp_path):
    plain = (corpus / "part-0.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(plain))
    pl.read_ndjson(plain).write_parquet(tmp_path / "a.parquet")
    tables = [
        documents(build(tmp_path / suffix, llama, tmp_path / f"a.{suffix}"))
        for suffix in ("jsonl.gz", "jsonl.zst", "parquet")
    ]
    assert tables[0]["text"].to_list() == TEXTS[: len(TEXTS) // 2]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_an_index_takes_no_gradients_of_another_setting_and_a_refused_run_leaves_no_trace(
    llama, gpt2, corpus, tmp_path
):
    build(tmp_path / "index", llama, corpus)
    before, times = files(tmp_path / "index"), modification_times(tmp_path / "index")
    for changed, words in (
        ({"gradient": {"projection_dim": 5}}, "gradient.projection_dim 4, and this run asks for 5"),
        ({"model": {"dtype": "bfloat16"}}, "dtype float32"),
        ({"mode": "none"}, "second_moment factored, and this run asks for none"),
        ({"mode": "estimated"}, "second_moment factored, and this run asks for estimated"),
    ):
        with pytest.raises(InputError, match=f"was built with {words}.* choose another --index"):
            build(tmp_path / "index", llama, corpus, **changed)
    with pytest.raises(InputError, match="was built with checkpoint"):
        build(tmp_path / "index", gpt2, corpus)
    trained_on = shutil.copytree(llama, tmp_path / "trained on")
    (trained_on / "optimizer.pt").write_bytes((gpt2 / "optimizer.pt").read_bytes())
    with pytest.raises(InputError, match="was built with optimizer"):
        build(tmp_path / "index", trained_on, corpus)
    assert (files(tmp_path / "index"), modification_times(tmp_path / "index")) == (before, times)


@pytest.mark.parametrize("at_once", [3, len(TEXTS)])
def test_two_documents_of_one_id_are_refused_and_another_id_column_is_the_cure(llama, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("trackstar.tasks.index.contents.IDS_AT_ONCE", at_once)
    write_lines(
        tmp_path / "c.jsonl", [line(text, id="same" if n % 4 == 1 else f"d{n}") for n, text in enumerate(TEXTS)]
    )
    with pytest.raises(InputError, match=r"5 documents share their id with another, 'same' for one; give --id-column"):
        build(tmp_path / "index", llama, tmp_path / "c.jsonl")
    assert not (tmp_path / "index" / "index.json").exists()
    columns = {"corpus": {"paths": [str(tmp_path / "c.jsonl")], "id_column": "none"}}
    assert documents(build(tmp_path / "index", llama, **columns))["id"].to_list() == [
        f"c.jsonl:{n}" for n in range(len(TEXTS))
    ]
