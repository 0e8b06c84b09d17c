import json
from dataclasses import dataclass

import polars as pl
import pytest
from upath import UPath

from trackstar.storage.errors import CorruptionError, MissingError
from trackstar.storage.partial_files import write_atomically
from trackstar.storage.results import (
    RESULT_SCHEMA,
    read_json,
    read_proponents,
    read_run,
    write_json,
    write_proponents,
    write_run,
    write_text,
)


@dataclass(frozen=True)
class Query:
    id: str
    prompt: str
    completion: str
    relevant_ids: tuple[str, ...] | None = None


QUERIES = [Query("q1", "The capital of Chad is", " N'Djamena", ("d2",)), Query("q2", "Die Hauptstadt ist", " Köln")]
TEXTS = {"d1": "One.", "d2": "Zwei: Köln\nund mehr.", "d3": "\ud800 broken"}


def table(rows):
    return pl.DataFrame(rows, schema=RESULT_SCHEMA, orient="row")


FRAME = table(
    [
        ("q1", "trackstar", "proponent", 2, "d1", 0.25),  # not in rank order, as a shard merge may leave them
        ("q1", "trackstar", "proponent", 1, "d2", 0.5),
        ("q1", "trackstar", "opponent", 1, "d3", -0.125),
        ("q2", "trackstar", "proponent", 1, "d3", 0.1),
        ("q1", "bm25", "proponent", 1, "d1", 7.0),
    ]
)


@pytest.fixture
def directory(tmp_path):
    return UPath(tmp_path / "out")


def write(directory, frame=FRAME):
    files = write_proponents(directory, frame, queries=QUERIES, texts=TEXTS, query_set="capitals")
    write_run(directory, {"answers": {"q1": "\ud800"}}, files=files)


def released(directory):
    return [json.loads(line) for line in (directory / "proponents.jsonl").read_text().splitlines()]


def test_the_table_reads_back_as_it_was_written(directory):
    write(directory)
    assert read_proponents(directory).equals(FRAME)


def test_a_line_per_query_and_method_has_the_released_field_names(directory):
    write(directory)
    assert released(directory)[0] == {
        "example_id": "q1",
        "query_set": "capitals",
        "method": "trackstar",
        "inputs_plaintext": "The capital of Chad is",
        "targets_plaintext": " N'Djamena",
        "proponents": ["Zwei: Köln\nund mehr.", "One."],
        "proponent_ids": ["d2", "d1"],
        "proponent_scores": [0.5, 0.25],
        "opponents": ["\ud800 broken"],
        "opponent_ids": ["d3"],
        "opponent_scores": [-0.125],
        "proponent_correct": [True, False],
    }


def test_lines_follow_the_queries_and_then_the_methods(directory):
    write(directory)
    assert [(line["example_id"], line["method"]) for line in released(directory)] == [
        ("q1", "trackstar"),
        ("q1", "bm25"),
        ("q2", "trackstar"),
    ]


def test_a_method_without_opponents_has_empty_lists_and_a_query_without_evidence_no_correctness(directory):
    write(directory)
    bm25, without_evidence = released(directory)[1:]
    assert (bm25["opponents"], bm25["opponent_ids"], bm25["opponent_scores"]) == ([], [], [])
    assert "proponent_correct" not in without_evidence


def test_the_json_lines_are_readable_utf_8_even_with_half_a_character_in_a_text(directory):
    write(directory)
    content = (directory / "proponents.jsonl").read_bytes().decode("utf-8")
    assert "Köln" in content
    assert "\\ud800 broken" in content


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_refused(directory, score):
    with pytest.raises(ValueError, match=r"'candidate_id': 'd1'.*not a finite number"):
        write(directory, table([("q1", "trackstar", "proponent", 1, "d1", score)]))
    assert not directory.exists()


@pytest.mark.parametrize(("query_id", "candidate_id"), [("q9", "d1"), ("q1", "d9")])
def test_an_id_nobody_knows_is_refused(directory, query_id, candidate_id):
    with pytest.raises(ValueError, match=r"'[qd]9' of the result table is not among those given"):
        write(directory, table([(query_id, "trackstar", "proponent", 1, candidate_id, 0.5)]))


def test_a_table_with_other_columns_is_refused(directory):
    with pytest.raises(ValueError, match="has the columns"):
        write(directory, FRAME.rename({"score": "influence"}))


def test_missing_and_damaged_tables_are_told_apart(directory):
    with pytest.raises(MissingError, match=r"run\.json does not exist"):
        read_proponents(directory)
    write(directory)
    (directory / "proponents.parquet").unlink()
    with pytest.raises(MissingError, match=r"proponents\.parquet does not exist"):
        read_proponents(directory)


def test_a_table_reaches_no_parser_unless_it_is_the_one_that_run_json_tells_of(directory):
    write(directory)
    path = directory / "proponents.parquet"
    content = path.read_bytes()
    FRAME.with_columns(score=pl.col("score") * 2).write_parquet(str(path))
    for damaged in (path.read_bytes(), content[:-9], b"PAR1 not really", content[:40] + b"\0" + content[41:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=r"proponents\.parquet differs .*; run `trackstar attribute`"):
            read_proponents(directory)


def test_run_json_says_what_was_written_and_a_flipped_bit_in_it_is_found(directory):
    write(directory)
    assert read_run(directory)["answers"] == {"q1": "\ud800"}
    path = directory / "run.json"
    path.write_bytes(path.read_bytes().replace(b"answers", b"answerr"))
    with pytest.raises(CorruptionError, match=r"run\.json differs from what was written"):
        read_run(directory)


def test_json_reads_back_and_nan_is_refused_without_touching_the_file(directory):
    path = directory / "metrics.json"
    write_json(path, {"mrr": 0.5, "λ": 0.9})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_json(path, {"mrr": float("nan")})
    assert read_json(path) == {"mrr": 0.5, "λ": 0.9}
    assert [file.name for file in directory.iterdir()] == ["metrics.json"]


def test_json_that_is_missing_or_damaged_names_the_file(directory):
    with pytest.raises(MissingError, match=r"run\.json does not exist"):
        read_json(directory / "run.json")
    write_text(directory / "run.json", "{")
    with pytest.raises(CorruptionError, match=r"run\.json is not readable JSON"):
        read_json(directory / "run.json")


def test_what_a_killed_writer_left_is_cleared_by_the_next_and_what_a_living_one_writes_is_not(directory):
    path = directory / "report.html"
    write_text(path, "old")
    (directory / ".report.html.partial-0123abcd").write_text("half")
    (directory / ".report.html.partial-notours").write_text("a name that no writer gives")
    with write_atomically(path) as slow:
        slow.write(b"slow")
        write_text(path, "fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow"
    assert sorted(entry.name for entry in directory.iterdir()) == [".report.html.partial-notours", "report.html"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(directory):
    path = directory / "report.html"
    write_text(path, "old")

    def write_half():
        with write_atomically(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in directory.iterdir()] == ["report.html"]


def test_an_object_store_takes_the_same_files():
    directory = UPath("memory://results/out")
    write(directory)
    assert read_proponents(directory).equals(FRAME)


def test_the_csv_has_the_ids_of_the_table_as_text(directory):
    write(directory)
    read = pl.read_csv(str(directory / "proponents.csv"), infer_schema=False).cast(dict(RESULT_SCHEMA))
    assert read.equals(FRAME.cast(dict(RESULT_SCHEMA)).select(read.columns))


def test_the_table_becomes_a_pandas_frame_with_ids_as_text(directory):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = FRAME.cast(dict(RESULT_SCHEMA)).to_pandas()
    assert frame["candidate_id"].map(type).eq(str).all()
