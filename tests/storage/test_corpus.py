"""Corpus files, shards and documents, against a naive reading of the whole file with json.loads."""

import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.storage import corpus, documents, json_lines
from trackstar.storage.corpus import corpus_files, plan_shards, read_documents
from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.storage.reading import Reading

RNG = random.Random(0)
ROWS = [{"id": f"d{i}", "text": f"document {i} " + "λ" * RNG.randint(0, 50)} for i in range(57)]
DEEP = "[" * 200_000


def write_lines(path: Path, lines: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def as_lines(rows: list[dict]) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def compress(path: Path, suffix: str) -> Path:
    """A sibling directory's copy of a file, compressed as its suffix says."""
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress, "": bytes}[suffix]
    target = path.parent / (suffix.strip(".") or "plain") / f"{path.name}{suffix}"
    target.parent.mkdir()
    target.write_bytes(pack(path.read_bytes()))
    return target


def shards_of(path: object, shard_size: int = 1000) -> list[corpus.CorpusShard]:
    (file,) = corpus_files([str(path)])
    return plan_shards(file, shard_size=shard_size)


def read(path: object, *, shard_size: int = 1000, batch_size: int = 100, **columns) -> tuple[list[tuple], list[tuple]]:
    """Documents and rejected rows of all shards of a file, one after another."""
    kept, rejected = [], []
    for shard in shards_of(path, shard_size):
        for batch in read_documents(shard, batch_size=batch_size, **columns):
            assert batch.documents.height + batch.rejected.height <= batch_size
            kept += batch.documents.rows()
            rejected += batch.rejected.rows()
    return kept, rejected


# Formats


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("shard_size", "batch_size"), [(1000, 1000), (10, 3), (1, 1)])
def test_every_compression_gives_the_same_rows_and_ids(tmp_path, suffix, shard_size, batch_size):
    plain = write_lines(tmp_path / "c.jsonl", as_lines([*ROWS, {"text": "no id"}]))
    kept, rejected = read(compress(plain, suffix), shard_size=shard_size, batch_size=batch_size)
    assert kept == [*((i, row["id"], row["text"]) for i, row in enumerate(ROWS)), (57, "c.jsonl:57", "no id")]
    assert rejected == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_shard_digests_do_not_depend_on_compression(tmp_path, suffix):
    plain = write_lines(tmp_path / "c.jsonl", as_lines(ROWS))
    packed = compress(plain, suffix)
    assert [s.identity for s in shards_of(packed, 10)] == [s.identity for s in shards_of(plain, 10)]


@pytest.mark.parametrize(("slice_rows", "shard_size", "batch_size"), [(4096, 1000, 1000), (7, 20, 3), (1, 1, 1)])
def test_parquet_gives_the_rows_that_json_lines_give(tmp_path, monkeypatch, slice_rows, shard_size, batch_size):
    monkeypatch.setattr(corpus, "PARQUET_SLICE_ROWS", slice_rows)
    rows = [*ROWS, {"id": None, "text": "no id"}, {"id": "n", "text": None}, {"id": "e", "text": " \x1c"}]
    pl.DataFrame(rows).with_columns(unused=pl.lit(1)).write_parquet(tmp_path / "c.parquet", row_group_size=8)
    expected_kept, expected_rejected = read(write_lines(tmp_path / "c.jsonl", as_lines(rows)))
    kept, rejected = read(tmp_path / "c.parquet", shard_size=shard_size, batch_size=batch_size)
    assert kept == [(row, id_.replace(".jsonl:", ".parquet:"), text) for row, id_, text in expected_kept]
    assert rejected == expected_rejected == [(58, "n", "text is null, not a string"), (59, "e", "empty text")]


@pytest.mark.parametrize("frames", [[b""], [b"", b"x"], [b"x", b"y", b"z"]])
def test_all_frames_of_a_zstandard_file_are_read(tmp_path, frames):
    pack = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    lines = [b'{"text": "%s"}\n' % frame for frame in frames]
    (tmp_path / "c.jsonl.zst").write_bytes(skippable.join(pack(line) for line in lines) + skippable)
    kept, rejected = read(tmp_path / "c.jsonl.zst")
    assert [text.encode() for _, _, text in kept] == [frame for frame in frames if frame]
    assert len(kept) + len(rejected) == len(frames)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_shard_far_into_a_file_is_found(tmp_path, suffix):
    rows = [{"text": f"{i} " + "x" * 400_000} for i in range(12)]
    path = compress(write_lines(tmp_path / "c.jsonl", as_lines(rows)), suffix)
    (batch,) = read_documents(shards_of(path, 3)[-1], batch_size=3)
    assert batch.documents["row"].to_list() == [9, 10, 11]
    assert batch.documents["text"].to_list() == [row["text"] for row in rows[9:]]


def test_a_file_name_with_brackets_is_not_a_pattern(tmp_path):
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "c[1]*.parquet")
    write_lines(tmp_path / "c[1]*.jsonl", as_lines([{"text": "a"}]))
    assert [read(tmp_path / f"c[1]*.{kind}") for kind in ("parquet", "jsonl")] == [
        ([(0, f"c[1]*.{kind}:0", "a")], []) for kind in ("parquet", "jsonl")
    ]


def test_a_url_is_read_like_a_local_path():
    path = location("memory://corpus-test/a/c.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in as_lines(ROWS)))
    (file,) = corpus_files(["memory://corpus-test"])
    assert file.id_prefix == "a/c.jsonl"
    shards = plan_shards(file, shard_size=10)
    texts = [
        text for shard in shards for batch in read_documents(shard, batch_size=4) for text in batch.documents["text"]
    ]
    assert texts == [row["text"] for row in ROWS]


# Any content, any cut


def naive(data: bytes) -> tuple[dict[int, tuple[str, str]], set[int]]:
    """Documents and rejected rows of a file, from the definition."""
    kept, rejected = {}, set()
    rows = data.split(b"\n")
    for row, line in enumerate(rows[:-1] if rows[-1] == b"" else rows):
        line = line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            record["text"].strip()[0].encode(), record["text"].encode()
            id_ = record.get("id")
            kept[row] = (f"c.jsonl:{row}" if id_ is None else str(id_), record["text"])
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            rejected.add(row)
    return kept, rejected


values = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
objects = st.fixed_dictionaries(
    {"text": st.one_of(st.text(max_size=20), values)},
    optional={"id": st.one_of(st.none(), st.integers(), st.text(min_size=1, max_size=3)), "other": values},
)
escaped = objects.map(lambda row: json.dumps(row).encode())
unescaped = objects.map(lambda row: json.dumps(row, ensure_ascii=False).encode())
scalars = values.map(lambda value: json.dumps(value).encode())
any_line = st.one_of(
    escaped,
    unescaped,
    scalars,
    st.binary(max_size=8).map(lambda line: line.replace(b"\n", b"")),
    st.sampled_from(
        [b"", b" \t", b'{"text": "\\ud800"}', b'{"text": "\\ud83d\\ude00"}', b'{"no": 1}', b'{"text": "a"']
    ),
)


@settings(deadline=None, max_examples=150)
@given(
    body=st.lists(any_line, max_size=12),
    ends=st.tuples(st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans()),
    cuts=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_shards_and_batches_of_any_size_add_up_to_a_naive_reading(tmp_path_factory, body, ends, cuts):
    newline, final_newline, byte_order_mark = ends
    first = b'{"text": "so that there is a text column"}'
    data = b"\xef\xbb\xbf" * byte_order_mark + newline.join([first, *body]) + newline * final_newline
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_bytes(data)
    kept, rejected = read(path, shard_size=cuts[0], batch_size=cuts[1])
    expected_kept, expected_rejected = naive(data)
    assert kept == [(row, *document) for row, document in expected_kept.items()]
    assert {row for row, _, _ in rejected} == expected_rejected
    assert len(rejected) == len(expected_rejected)


@settings(deadline=None, max_examples=50)
@given(lines=st.lists(any_line, max_size=20), shard_size=st.integers(1, 8), final_newline=st.booleans())
def test_shards_tile_the_file_and_their_digest_is_that_of_their_bytes(
    tmp_path_factory, lines, shard_size, final_newline
):
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "x"}', *lines]) + b"\n" * final_newline)
    data, row, offset = path.read_bytes(), 0, 0
    shards = shards_of(path, shard_size)
    for shard in shards:
        part = data[shard.byte_offset : shard.byte_offset + shard.num_bytes]
        assert (shard.first_row, shard.byte_offset) == (row, offset)
        assert shard.digest == hashlib.sha256(part).hexdigest()
        assert shard.num_rows == len(part.removesuffix(b"\n").split(b"\n"))
        row, offset = row + shard.num_rows, offset + shard.num_bytes
    assert offset == len(data)
    assert all(shard.num_rows == shard_size for shard in shards[:-1])


# Bad rows


@pytest.mark.parametrize(
    ("line", "id_", "reason"),
    [
        (b'{"id": "b", "text" "x"}', None, "malformed JSON at column 20: Expecting ':' delimiter"),
        (b'{"id": "b", "te\xff', None, "not UTF-8 at byte 16"),
        (b'{"text": ' + DEEP.encode(), None, "malformed JSON: nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", None, "malformed JSON: Exceeds the limit (4300 digits)"),
        (b'{"text": "a"} {"text": "b"}', None, "malformed JSON at column 15: Extra data"),
        (b'["text"]', None, "the line is a list, not an object"),
        (b"null", None, "the line is null, not an object"),
        (b'{"id": "b"}', "b", "no column 'text'"),
        (b'{"id": "b", "text": ""}', "b", "empty text"),
        (b'{"id": 7, "text": " \\n\\t"}', "7", "empty text"),
        (b'{"text": null}', "c.jsonl:1", "text is null, not a string"),
        (b'{"id": "b", "text": ["a"]}', "b", "text is a list, not a string"),
        (b'{"id": "b", "text": {"a": 1}}', "b", "text is an object, not a string"),
        (b'{"id": "b", "text": 12}', "b", "text is an integer, not a string"),
        (b'{"id": "b", "text": true}', "b", "text is a boolean, not a string"),
        (b'{"id": "b", "text": "a\\ud800b"}', "b", "text has a lone surrogate at character 2"),
        (b'{"id": "\\udc00", "text": "a"}', None, "id has a lone surrogate at character 1"),
        (b'{"id": 1.5, "text": "a"}', None, "id is a float, not a string"),
        (b'{"id": true, "text": "a"}', None, "id is a boolean, not a string"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bad_row_is_rejected_with_its_reason_and_no_neighbour_is_lost(tmp_path, line, id_, reason, batch_size):
    path = write_lines(tmp_path / "c.jsonl", [b'{"id": "a", "text": "A"}', line, b'{"id": "z", "text": "Z"}'])
    kept, [(row, rejected_id, given_reason)] = read(path, batch_size=batch_size)
    assert kept == [(0, "a", "A"), (2, "z", "Z")]
    assert (row, rejected_id) == (1, id_)
    assert given_reason.startswith(reason)


def test_an_overlong_line_is_rejected_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "LINE_LIMIT_BYTES", 1 << 20)
    lines = [b'{"text": "' + b"x" * size + b'"}' for size in (5, (1 << 20) - 13, 1 << 20, 3_500_000)]
    path = write_lines(tmp_path / "c.jsonl", [*lines, b'{"text": "last"}', lines[3]])
    kept, rejected = read(path)
    assert [(row, len(text)) for row, _, text in kept] == [(0, 5), (1, (1 << 20) - 13), (4, 4)]
    assert rejected == [(row, None, "longer than 1 MiB") for row in (2, 3, 5)]


def test_long_documents_end_a_batch_early(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BATCH_CHARACTERS", 5_000_000)
    path = write_lines(tmp_path / "c.jsonl", as_lines([{"text": "λ" * 2_000_000}] * 5))
    (shard,) = shards_of(path)
    heights = [batch.documents.height for batch in read_documents(shard, batch_size=100)]
    assert heights == [3, 2]


# Columns


def test_columns_go_by_the_names_given_and_extra_ones_come_as_strings(tmp_path):
    rows = [{"key": 3, "body": "a", "title": "T", "tags": ["λ", 1]}, {"body": "b", "title": None, "text": "ignored"}]
    columns = {"reading": Reading(text_column="body"), "id_column": "key", "extra_columns": ["title", "tags"]}
    expected = [(0, "3", "a", "T", '["λ", 1]'), (1, "c.jsonl:1", "b", None, None)]
    (file,) = corpus_files([str(write_lines(tmp_path / "c.jsonl", as_lines(rows)))])
    (shard,) = plan_shards(file, shard_size=10, reading=Reading(text_column="body"))
    (batch,) = read_documents(shard, batch_size=10, **columns)
    assert batch.documents.rows() == expected
    assert batch.documents.schema == pl.Schema(
        {"row": pl.UInt64, "id": pl.String, "text": pl.String, "title": pl.String, "tags": pl.String}
    )
    assert batch.rejected.schema == pl.Schema({"row": pl.UInt64, "id": pl.String, "reason": pl.String})


def test_an_extra_column_that_every_document_has_is_refused(tmp_path):
    (shard,) = shards_of(write_lines(tmp_path / "c.jsonl", as_lines(ROWS)))
    with pytest.raises(InputError, match="--extra-columns holds 'text'"):
        read_documents(shard, batch_size=1, extra_columns=["text"])


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_a_file_without_the_text_column_is_refused_with_the_columns_it_has(tmp_path, name):
    rows = [{"id": "a", "content": "x"}, {"id": "b", "content": "y"}]
    path = tmp_path / name
    pl.DataFrame(rows).write_parquet(path) if name == "c.parquet" else write_lines(path, [b"junk", *as_lines(rows)])
    with pytest.raises(InputError, match=r"has no column 'text' but 'id', 'content'; give --text-column"):
        shards_of(path)


def test_a_parquet_text_column_of_another_type_is_refused(tmp_path):
    pl.DataFrame({"text": [1, 2]}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"has Int64 in column 'text', expected String; give --text-column"):
        shards_of(tmp_path / "c.parquet")


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["a", "b"])])
def test_categorical_parquet_texts_are_texts(tmp_path, kind):
    pl.DataFrame({"text": ["a", "b", "a"]}, schema={"text": kind}).write_parquet(tmp_path / "c.parquet")
    assert [text for _, _, text in read(tmp_path / "c.parquet")[0]] == ["a", "b", "a"]


# Identity


@pytest.mark.parametrize("changed_row", [0, 24, 56])
def test_changing_one_line_changes_only_its_own_shard(tmp_path, changed_row):
    lines = as_lines(ROWS)
    before = shards_of(write_lines(tmp_path / "c.jsonl", lines), 10)
    lines[changed_row] = b'{"text": "another line, of another length"}'
    after = shards_of(write_lines(tmp_path / "c.jsonl", lines), 10)
    changed = [
        index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0].identity != pair[1].identity
    ]
    assert changed == [changed_row // 10]


def test_appending_to_a_file_keeps_its_full_shards(tmp_path):
    before = shards_of(write_lines(tmp_path / "c.jsonl", as_lines(ROWS)), 10)
    after = shards_of(write_lines(tmp_path / "c.jsonl", as_lines(ROWS + ROWS)), 10)
    assert after[:5] == before[:5]


def test_a_shard_identity_does_not_depend_on_where_the_file_lies(tmp_path):
    here, there = (write_lines(tmp_path / name / "c.jsonl", as_lines(ROWS)) for name in ("here", "there"))
    assert [s.identity for s in shards_of(here, 9)] == [s.identity for s in shards_of(there, 9)]


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
@pytest.mark.parametrize("num_left", [57, 20])
def test_a_file_that_changed_since_its_shards_were_planned_is_refused(tmp_path, name, num_left):
    write = {"c.jsonl": lambda rows: write_lines(tmp_path / name, as_lines(rows))}.get(
        name, lambda rows: pl.DataFrame(rows).write_parquet(tmp_path / name)
    )
    write(ROWS)
    shard = shards_of(tmp_path / name, 10)[4]
    write([*ROWS[:42], {"id": "d42", "text": "changed"}, *ROWS[43:]][:num_left])
    with pytest.raises(InputError, match=r"changed since its shards were planned \(rows 40 to 49\); run again"):
        list(read_documents(shard, batch_size=7))


# Unreadable and empty files


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut_bytes", [1, 5, 100_000])
def test_a_truncated_compressed_file_is_refused_by_name(tmp_path, suffix, cut_bytes):
    noise = random.Random(1).randbytes(300_000).hex()
    packed = compress(write_lines(tmp_path / "c.jsonl", as_lines([{"text": noise}] * 2)), suffix)
    packed.write_bytes(packed.read_bytes()[:-cut_bytes])
    with pytest.raises(InputError, match=rf"{packed.name} is damaged, cut short .* copy or compress it again"):
        shards_of(packed)


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused_by_name(tmp_path, name):
    path = write_lines(tmp_path / name, as_lines(ROWS))
    with pytest.raises(InputError, match=rf"{name} (is damaged|cannot be read as Parquet)"):
        shards_of(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_an_empty_json_lines_file_has_no_shard(tmp_path, suffix):
    assert shards_of(compress(write_lines(tmp_path / "c.jsonl", []), suffix)) == []


def test_an_empty_parquet_file_has_no_shard(tmp_path):
    pl.DataFrame(schema={"text": pl.String}).write_parquet(tmp_path / "c.parquet")
    assert shards_of(tmp_path / "c.parquet") == []


def test_a_file_that_vanished_is_refused(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", as_lines(ROWS))
    (shard,) = shards_of(path)
    path.unlink()
    with pytest.raises(InputError, match=r"c\.jsonl cannot be opened"):
        list(read_documents(shard, batch_size=1))


def test_a_shard_needs_at_least_one_row(tmp_path):
    with pytest.raises(InputError, match="shard_size is 0"):
        shards_of(write_lines(tmp_path / "c.jsonl", as_lines(ROWS)), 0)


# Files


def touch(root: Path, *names: str) -> None:
    for name in names:
        write_lines(root / name, [])


def prefixes(*paths: Path) -> list[str]:
    return [file.id_prefix for file in corpus_files([str(path) for path in paths])]


def test_a_directory_is_its_corpus_files_in_sorted_order(tmp_path):
    touch(
        tmp_path, "b.jsonl", "a/z.parquet", "a/c.jsonl.gz", "README.md", ".hidden/x.jsonl", "._b.jsonl", "c.jsonl.zst"
    )
    files = corpus_files([str(tmp_path)])
    assert [Path(file.path).relative_to(tmp_path).as_posix() for file in files] == [
        "a/c.jsonl.gz",
        "a/z.parquet",
        "b.jsonl",
        "c.jsonl.zst",
    ]
    assert [file.id_prefix for file in files] == ["a/c.jsonl", "a/z.parquet", "b.jsonl", "c.jsonl"]


def test_files_of_one_name_are_told_apart_by_their_directories(tmp_path):
    touch(tmp_path, "x/1/part.jsonl", "y/1/part.jsonl", "y/2/part.jsonl", "y/2/other.jsonl")
    files = ("x/1/part.jsonl", "y/1/part.jsonl", "y/2/part.jsonl", "y/2/other.jsonl")
    assert prefixes(*(tmp_path / name for name in files)) == [
        "x/1/part.jsonl",
        "y/1/part.jsonl",
        "2/part.jsonl",
        "other.jsonl",
    ]
    assert prefixes(tmp_path / "y/1", tmp_path / "y/2") == ["1/part.jsonl", "other.jsonl", "2/part.jsonl"]


def test_adding_a_file_to_a_directory_changes_no_id(tmp_path):
    touch(tmp_path, "1/part.jsonl", "2/part.jsonl")
    before = set(prefixes(tmp_path))
    touch(tmp_path, "3/part.jsonl", "part.jsonl", "other.jsonl")
    assert before < set(prefixes(tmp_path))


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "d/c.jsonl")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in corpus_files(["d"])] == [str(tmp_path / "d/c.jsonl")]


def test_no_path_is_refused():
    with pytest.raises(InputError, match="names no path; give at least one"):
        corpus_files([])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl does not exist; name a"):
        corpus_files([str(tmp_path / "gone.jsonl")])


def test_another_format_is_refused(tmp_path):
    touch(tmp_path, "c.json")
    with pytest.raises(InputError, match=r"c\.json is not a corpus file; expected \.jsonl"):
        corpus_files([str(tmp_path / "c.json")])


def test_a_directory_without_corpus_files_is_refused(tmp_path):
    touch(tmp_path, "c.json")
    with pytest.raises(InputError, match="holds no corpus file"):
        corpus_files([str(tmp_path)])


def test_one_file_twice_is_refused_however_it_is_named(tmp_path):
    touch(tmp_path, "d/c.jsonl", "e/c.jsonl.gz")
    os.link(tmp_path / "e/c.jsonl.gz", tmp_path / "d/c.jsonl.gz")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "d/c.jsonl")
    plain = str(tmp_path / "d/c.jsonl")
    for again in (plain, f"{tmp_path}/d/../d/c.jsonl", f"file://{plain}", f"{tmp_path}/link.jsonl", f"{plain}.gz"):
        with pytest.raises(InputError, match=r"are the same file of the corpus; name one of the two"):
            corpus_files([plain, again])
