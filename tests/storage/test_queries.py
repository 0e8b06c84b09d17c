"""Query files: what is accepted, and the sentence that answers what is not."""

import csv
import json

import pytest

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query, queries_digest, read_ids, read_queries

GOOD = {"id": "q1", "prompt": "The capital of France is", "completion": " Paris"}


def write(path, *lines):
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def test_queries_come_in_the_order_of_the_file(tmp_path):
    full = {**GOOD, "id": "q2", "relevant_ids": ["d1", 2], "answer_aliases": ["Paname"]}
    queries = read_queries(write(tmp_path / "q.jsonl", full, b"  ", {**GOOD, "note": "ignored"}))
    assert queries == [
        Query(
            id="q2",
            prompt=GOOD["prompt"],
            completion=" Paris",
            relevant_ids=("d1", "2"),
            answer_aliases=("Paname",),
        ),
        Query(**GOOD),
    ]
    assert queries[1].relevant_ids is None


def test_integer_ids_become_strings(tmp_path):
    assert [query.id for query in read_queries(write(tmp_path / "q.jsonl", {**GOOD, "id": 7}))] == ["7"]


def test_an_empty_prompt_is_a_completion_that_follows_nothing(tmp_path):
    assert read_queries(write(tmp_path / "q.jsonl", {**GOOD, "prompt": ""}))[0].prompt == ""


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert read_queries(path) == [Query(**GOOD)]


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "q",}', "malformed JSON at column 12"),
        (b"\xff", "not UTF-8 at byte 1"),
        (["q1"], "the line is a list, not an object"),
        (without("prompt"), "'prompt' is missing, expected a string"),
        (without("completion"), "'completion' is missing, expected a string"),
        ({**GOOD, "id": None}, "'id' is null, expected a string"),
        ({**GOOD, "id": True}, "'id' is a boolean, expected a string"),
        ({**GOOD, "id": ""}, "'id' is empty, expected some text"),
        ({**GOOD, "prompt": ["a"]}, "'prompt' is a list, expected a string"),
        ({**GOOD, "completion": 1789}, "'completion' is an integer, expected a string"),
        ({**GOOD, "completion": ""}, "'completion' is empty, expected some text"),
        ({**GOOD, "completion": " \n"}, "'completion' is empty, expected some text"),
        ({**GOOD, "prompt": "a\ud800"}, "'prompt' has a lone surrogate at character 2"),
        ({**GOOD, "relevant_ids": "d1"}, "'relevant_ids' is a string, expected a list of strings"),
        ({**GOOD, "relevant_ids": ["d1", 1.5]}, "'relevant_ids.1' is a float, expected a string"),
    ],
)
def test_a_line_that_is_not_a_query_is_named_with_what_was_expected(tmp_path, line, problem):
    path = write(tmp_path / "q.jsonl", {**GOOD, "id": "first"}, b"", line)
    with pytest.raises(InputError) as caught:
        read_queries(path)
    message = str(caught.value)
    assert message.startswith(f"{path} line 3: {problem}")
    assert '{"id": ..., "prompt": ..., "completion": ...}' in message
    assert "correct" in message


def test_two_queries_with_one_id_are_refused_with_both_lines(tmp_path):
    path = write(tmp_path / "q.jsonl", {**GOOD, "id": 1}, GOOD, {**GOOD, "id": "1"})
    with pytest.raises(InputError, match=r"line 3: id '1' is already on line 1, .* rename one"):
        read_queries(path)


@pytest.mark.parametrize("lines", [[], [b"", b" "]])
def test_a_file_without_queries_is_refused(tmp_path, lines):
    with pytest.raises(InputError, match=r"q\.jsonl line 1: no query in the file, expected .*; add at least one"):
        read_queries(write(tmp_path / "q.jsonl", *lines))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"q\.jsonl cannot be opened \(No such file or directory\); name a readable file"
    ):
        read_queries(tmp_path / "q.jsonl")


def test_the_digest_is_of_the_content_and_the_order(tmp_path):
    other = {**GOOD, "id": "q2"}
    digest = queries_digest(read_queries(write(tmp_path / "a.jsonl", GOOD, other)))
    reordered_keys = dict(reversed(GOOD.items()))
    assert digest == queries_digest(read_queries(write(tmp_path / "b.jsonl", b"", reordered_keys, {**other, "x": 1})))
    changed = [[other, GOOD], [GOOD], [GOOD, {**other, "completion": "Paris"}], [GOOD, {**other, "relevant_ids": []}]]
    digests = {queries_digest(read_queries(write(tmp_path / "c.jsonl", *lines))) for lines in changed}
    assert len(digests | {digest}) == len(changed) + 1


def test_an_id_is_all_of_its_line_whatever_it_looks_like(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffd1\r\n\n  https://example.invalid/a \n/etc/passwd\nü\u2028ber\n \nlast".encode())
    assert read_ids(path) == ["d1", "  https://example.invalid/a ", "/etc/passwd", "ü\u2028ber", "last"]


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"d1\n\xff\n", "is not UTF-8 .byte 3."), (b"\n \n", "holds no id"), (b"", "holds no id")]
)
def test_a_file_without_readable_ids_is_refused(tmp_path, content, sentence):
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_ids(tmp_path / "ids.txt")


def test_a_file_of_ids_that_is_missing_or_a_directory_is_refused(tmp_path):
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_ids(path)


ASKED = [
    {"id": "a", "prompt": "p, q", "completion": " two\nlines", "relevant_ids": ["d1"]},
    {"prompt": "", "completion": "c"},
]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_every_kind_of_file_gives_the_same_queries(tmp_path, kind):
    path = tmp_path / f"q.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ASKED))
    elif kind == "jsonl":
        write(path, *ASKED)
    else:
        rows = [
            [row.get("id", ""), row["prompt"], row["completion"], json.dumps(row.get("relevant_ids"))] for row in ASKED
        ]
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerows([["id", "prompt", "completion", "relevant_ids"], *rows])
    assert read_queries(path) == [
        Query(id="a", prompt="p, q", completion=" two\nlines", relevant_ids=("d1",)),
        Query(id=f"q.{kind}:1", prompt="", completion="c"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("q.csv", "prompt,completion\na,b\na\n", r"row 2: 1 fields, and the header has 2"),
        ("q.csv", "prompt,completion,relevant_ids\na,b,d1\n", r"row 1: relevant_ids is 'd1', not a list as JSON"),
        ("q.tsv", "prompt\na\n", r"row 1: 'completion' is missing"),
        ("q.json", '[{"prompt": "a", "completion": "b"}, 3]', r"row 2: it is an integer, not an object"),
        ("q.json", "{}", "is an object, expected a list of queries"),
        ("q.json", "{", "is no JSON"),
    ],
)
def test_a_wrong_row_of_any_kind_of_file_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=problem):
        read_queries(tmp_path / name)
