"""What a corpus may be, on files that the usual libraries wrote."""

import csv
import json

import polars as pl
import pytest

from tests.storage.test_corpus import compress
from trackstar.storage.corpus import corpus_files, plan_shards, read_documents, require_documents
from trackstar.storage.errors import InputError
from trackstar.storage.reading import Reading

TEXTS = ["plain", 'with "quotes", and commas', "two\nlines", " λ ", "tab\there"]
TEXT = Reading()


def read(path, *, shard_size=1000, reading=TEXT, **columns):
    kept, rejected = [], []
    for file in corpus_files([str(path)]):
        for shard in plan_shards(file, shard_size=shard_size, reading=reading):
            for batch in read_documents(shard, batch_size=2, reading=reading, **columns):
                kept += batch.documents.rows()
                rejected += batch.rejected.rows()
    return kept, rejected


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("shard_size", [1, 2, 100])
def test_csv_and_tsv_give_the_rows_that_were_written(tmp_path, packed, kind, delimiter, shard_size):
    path = tmp_path / f"c.{kind}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("id", "text"), *((f"d{n}", text) for n, text in enumerate(TEXTS)), ("", "no id")])
    kept, rejected = read(compress(path, packed), shard_size=shard_size)
    expected = [*((n, f"d{n}", text) for n, text in enumerate(TEXTS)), (5, f"c.{kind}:5", "no id")]
    assert (kept, rejected) == (expected, [])


def test_a_wrong_record_of_csv_is_set_aside_by_itself(tmp_path):
    rows = [b"id,text", b"a,one", b"b,one,two", b'c,"x"y', b"", b"d,\xff", b"e,", b"f,good"]
    (tmp_path / "c.csv").write_bytes(b"\n".join(rows) + b"\n")
    kept, rejected = read(tmp_path / "c.csv")
    assert kept == [(0, "a", "one"), (6, "f", "good")]
    assert [row for row, _, _ in rejected] == [1, 2, 4, 5]
    reasons = [reason for _, _, reason in rejected]
    assert reasons[0] == "3 fields, and the header has 2"
    assert reasons[1].startswith("malformed CSV")
    assert reasons[2:] == ["text has a lone surrogate at character 1", "empty text"]


def test_a_csv_that_grows_keeps_the_shards_it_had(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("text\na\nb\nc\n")
    before = plan_shards(*corpus_files([str(path)]), shard_size=2)
    path.write_text("text\na\nb\nc\nd\ne\n")
    after = plan_shards(*corpus_files([str(path)]), shard_size=2)
    assert after[0] == before[0]
    assert after[1].digest != before[1].digest


def test_a_csv_that_changed_after_planning_is_refused(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("text,n\na,1\n")
    (shard,) = plan_shards(*corpus_files([str(path)]), shard_size=2)
    path.write_text("n,text\na,1\n")  # the same record under another header
    with pytest.raises(InputError, match="has changed since"):
        list(read_documents(shard, batch_size=2))


def test_a_csv_without_the_column_is_refused_by_the_columns_it_has(tmp_path):
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"c\.csv has no column 'text' but 'a', 'b'; give --text-column"):
        read(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("a,a\n1,2\n")
    with pytest.raises(InputError, match="two columns 'a'"):
        read(tmp_path / "d.csv", reading=Reading(text_column="a"))


@pytest.mark.parametrize("shard_size", [1, 100])
def test_plain_text_is_a_document_a_file_or_a_paragraph(tmp_path, shard_size):
    (tmp_path / "b.csv.txt").write_text("one\ntwo\n\n \nthree\n")
    (tmp_path / "a.txt").write_text("alone")
    assert read(tmp_path, shard_size=shard_size)[0] == [
        (0, "a.txt:0", "alone"),
        (0, "b.csv.txt:0", "one\ntwo\n\n \nthree\n"),
    ]
    paragraphs = read(tmp_path, shard_size=shard_size, reading=Reading(text_unit="paragraph"))[0]
    assert paragraphs == [(0, "a.txt:0", "alone"), (0, "b.csv.txt:0", "one\ntwo\n"), (1, "b.csv.txt:1", "three\n")]


def test_several_columns_are_joined(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"title": "T", "body": "B"}\n{"title": "T"}\n{"title,body": "whole"}\n')
    kept, rejected = read(tmp_path / "c.jsonl", reading=Reading(text_column="title,body", text_separator=": "))
    assert [text for _, _, text in kept] == ["T: B", "whole"]
    assert rejected == [(1, "c.jsonl:1", "no column 'title,body'")]


def test_a_pattern_names_the_files_that_match_it(tmp_path):
    for name in ("a-1.jsonl", "a-2.jsonl", "b-1.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert [id_ for _, id_, _ in read(tmp_path / "a-*.jsonl")[0]] == ["a-1.jsonl:0", "a-2.jsonl:0"]
    with pytest.raises(InputError, match=r"z-\*\.jsonl matches no corpus file"):
        read(tmp_path / "z-*.jsonl")


def test_a_read_me_beside_a_corpus_is_none_of_it(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n')
    for name in ("README.txt", "files.csv"):
        (tmp_path / name).write_text("name\nx\n")
    assert read(tmp_path)[0] == [(0, "c.jsonl:0", "x")]


@pytest.mark.parametrize("shard_size", [3, 100])
def test_a_dataset_saved_to_disk_gives_its_rows(tmp_path, shard_size):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": n, "text": f"text {n}"} for n in range(10)]
    datasets.Dataset.from_list(rows).select(range(9, -1, -1)).save_to_disk(str(tmp_path / "d"), num_shards=2)
    (tmp_path / "d/cache-0.arrow").write_bytes((tmp_path / "d/data-00000-of-00002.arrow").read_bytes())
    kept, rejected = read(tmp_path / "d", shard_size=shard_size)
    assert [(id_, text) for _, id_, text in kept] == [(str(n), f"text {n}") for n in range(9, -1, -1)]
    assert rejected == []


def test_a_dataset_of_several_splits_is_refused_by_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="has the splits train, test; name the one that was trained on"):
        corpus_files([str(tmp_path / "d")])
    assert read(tmp_path / "d/train")[0] == [(0, "data-00000-of-00001.arrow:0", "a")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_chats_pairs_and_tokens_keep_what_they_say(tmp_path, kind):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = {
        "chat": {"messages": messages},
        "pairs": {"prompt": "p", "completion": " c"},
        "tokens": {"input_ids": [1, 2], "labels": [-100, 2]},
    }
    for name, row in rows.items():
        directory = tmp_path / name
        directory.mkdir()
        if kind == "jsonl":
            (directory / "c.jsonl").write_text(json.dumps(row) + "\n")
        elif kind == "parquet":
            pl.DataFrame([row]).write_parquet(directory / "c.parquet")
        else:
            pytest.importorskip("datasets").Dataset.from_list([row]).save_to_disk(str(directory))
        ((_, _, text, source),), rejected = read(directory)
        assert json.loads(source) == row
        assert (text, rejected) == ("p c" if name == "pairs" else "", [])


def test_a_corpus_of_no_use_is_refused_with_each_reason_counted(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n{"text": " "}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"row 0 .*empty text \(2 rows: empty text, 1 rows: text is an integer"):
        require_documents(corpus_files([str(tmp_path)]), reading=TEXT, id_column="id")
