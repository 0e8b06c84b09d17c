"""Results on disk: the ranked candidates of every query and method, and the JSON documents beside them.

``proponents.parquet`` is the table to compute with, ``proponents.csv`` the same for a spreadsheet. ``proponents.jsonl``
says the same with texts, one line per query and method, in the field names of the data released with Chang et al. 2024
(PAIR-code/pretraining-tda), so that their viewer opens it. ``run.json`` holds the SHA-256 of each, and a digest of its
own: what is read again is checked.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol

import polars as pl
from upath import UPath

from trackstar.storage.errors import CorruptionError, MissingError, StorageError
from trackstar.storage.layout import PROPONENTS_CSV, PROPONENTS_JSONL, PROPONENTS_PARQUET, RUN, SHARES
from trackstar.storage.partial_files import write_atomically
from trackstar.storage.sealed import sealed, unsealed

PROPONENT = "proponent"
OPPONENT = "opponent"

RESULT_SCHEMA = pl.Schema(
    {
        "query_id": pl.String,
        "method": pl.String,
        "kind": pl.String,  # PROPONENT or OPPONENT
        "rank": pl.UInt32,  # 1 is the highest score of the proponents, the lowest of the opponents
        "candidate_id": pl.String,
        "score": pl.Float64,
    }
)

READ_BYTES = 1 << 20  # at a time, while a digest is taken
CURE = "run `trackstar attribute` or `trackstar compare` again"


class QueryLike(Protocol):
    """What a result needs to know of a query."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def completion(self) -> str: ...
    @property
    def relevant_ids(self) -> Sequence[str] | None: ...


def write_proponents(
    directory: UPath,
    frame: pl.DataFrame,
    *,
    queries: Sequence[QueryLike],
    texts: Mapping[str, str],
    query_set: str,
) -> dict[str, str]:
    """Write ``proponents.parquet``, ``.csv`` and ``.jsonl``, each whole or not at all; return the SHA-256 of each.

    Args:
        frame: A result table (``RESULT_SCHEMA``).
        queries: Every query the table speaks of; their order is the order of the lines.
        texts: The text of every candidate the table speaks of.
        query_set: The name under which the released format files these queries.

    Raises:
        ValueError: The table has other columns, a score that is not finite, or an id without query or text.
    """
    frame = _checked(frame, queries=queries, texts=texts)
    table = io.BytesIO()
    frame.write_parquet(table)
    lines = released_lines(frame, queries=queries, texts=texts, query_set=query_set)
    return {
        PROPONENTS_PARQUET: _write(directory / PROPONENTS_PARQUET, [table.getvalue()]),
        PROPONENTS_CSV: _write(directory / PROPONENTS_CSV, [frame.write_csv(quote_style="non_numeric").encode()]),
        PROPONENTS_JSONL: _write(directory / PROPONENTS_JSONL, (_encode(line) + b"\n" for line in lines)),
    }


def write_shares(directory: UPath, frame: pl.DataFrame) -> dict[str, str]:
    """Write ``shares.parquet``, each checkpoint's part of every score; return its SHA-256."""
    table = io.BytesIO()
    frame.write_parquet(table)
    return {SHARES: _write(directory / SHARES, [table.getvalue()])}


def write_run(directory: UPath, record: Mapping[str, Any], *, files: Mapping[str, str]) -> None:
    """Write ``run.json``: what a run was, the SHA-256 of the files it wrote, and a digest of its own."""
    write_sealed(directory / RUN, {**record, "files": dict(files)})


def read_run(directory: UPath) -> dict[str, Any]:
    """What a run was.

    Raises:
        MissingError: There is no ``run.json``.
        CorruptionError: It is not what was written.
    """
    return read_sealed(directory / RUN, cure=CURE)


def read_proponents(directory: UPath) -> pl.DataFrame:
    """The result table of a result directory.

    Raises:
        MissingError: There is none, or no ``run.json`` that says what it holds.
        CorruptionError: One of the two is not what was written.
    """
    with _as_written(directory, PROPONENTS_PARQUET) as file:
        return pl.read_parquet(io.BytesIO(file.read()))


def read_lines(directory: UPath) -> Iterator[dict[str, Any]]:
    """The records of ``proponents.jsonl``, one a query and method.

    Raises:
        MissingError: There is none, or no ``run.json`` that says what it holds.
        CorruptionError: One of the two is not what was written.
    """
    with _as_written(directory, PROPONENTS_JSONL) as file:
        yield from map(json.loads, file)


@contextmanager
def _as_written(directory: UPath, name: str) -> Iterator[IO[bytes]]:
    """A file of results, open to be read, once its bytes are known to be those that were written."""
    path, files = directory / name, read_run(directory).get("files", {})
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise MissingError(path, "does not exist", CURE) from None
    with file:
        digest = hashlib.sha256()
        while piece := file.read(READ_BYTES):
            digest.update(piece)
        if digest.hexdigest() != files.get(name):
            raise CorruptionError(path, f"differs from what {RUN} says was written (SHA-256 mismatch)", CURE)
        file.seek(0)
        yield file


def queries_shown(directory: UPath, ids: Collection[str]) -> list[str]:
    """The queries whose answers in a result directory hold one of these documents, in order.

    Raises:
        StorageError: The answers cannot be read.
    """
    frame = read_proponents(directory)
    shown = frame.filter(frame["candidate_id"].is_in(list(ids)))
    return shown["query_id"].unique(maintain_order=True).to_list()


def answers_with(results: UPath, ids: Collection[str]) -> dict[str, list[str] | None]:
    """The result directories that hold one of these documents, with the queries; None for one that cannot be read."""
    found: dict[str, list[str] | None] = {}
    entries = sorted(results.iterdir(), key=lambda entry: entry.name) if results.is_dir() else []
    for directory in (entry for entry in entries if (entry / RUN).exists()):
        try:
            queries = queries_shown(directory, ids)
        except StorageError:
            found[directory.name] = None
            continue
        if queries:
            found[directory.name] = queries
    return found


def released_lines(
    frame: pl.DataFrame, *, queries: Iterable[QueryLike], texts: Mapping[str, str], query_set: str
) -> Iterator[dict[str, Any]]:
    """One record per query and method, in the released field names plus ``method``.

    ``proponent_correct`` is there where the query names its evidence, as in the released tables.
    """
    rankings = frame.sort("rank").partition_by("query_id", "method", "kind", as_dict=True, maintain_order=True)
    methods = frame["method"].unique(maintain_order=True).to_list()
    for query in queries:
        for method in methods:
            ranked = {kind: rankings.get((query.id, method, kind)) for kind in (PROPONENT, OPPONENT)}
            if any(table is not None for table in ranked.values()):
                yield _record(query, method, ranked=ranked, texts=texts, query_set=query_set)


def write_json(path: UPath, value: Any) -> None:
    """Write one JSON document; it appears whole or not at all.

    Raises:
        ValueError: The value holds NaN or an infinity, for which JSON has no word.
    """
    content = _encode(value, indent=1) + b"\n"
    with write_atomically(path) as file:
        file.write(content)


def read_json(path: UPath) -> Any:
    """The value of a JSON document.

    Raises:
        MissingError: There is no such file.
        CorruptionError: It is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(path, "does not exist", CURE) from None
    except ValueError as error:
        raise CorruptionError(path, "is not readable JSON", CURE) from error


def write_sealed(path: UPath, value: Mapping[str, Any]) -> None:
    """Write one JSON object with a digest of its own; it appears whole or not at all."""
    content = sealed(value)
    with write_atomically(path) as file:
        file.write(content)


def read_sealed(path: UPath, *, cure: str) -> dict[str, Any]:
    """A JSON object that was written with a digest of its own.

    Raises:
        MissingError: There is no such file.
        CorruptionError: It is not what was written.
    """
    try:
        return unsealed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(path, "does not exist", cure) from None
    except ValueError as error:
        raise CorruptionError(path, str(error), cure) from error


def write_text(path: UPath, text: str) -> None:
    """Write one UTF-8 text file; it appears whole or not at all."""
    content = text.encode()
    with write_atomically(path) as file:
        file.write(content)


def _write(path: UPath, parts: Iterable[bytes]) -> str:
    """Write a file; return its SHA-256."""
    hasher = hashlib.sha256()
    with write_atomically(path) as file:
        for part in parts:
            hasher.update(part)
            file.write(part)
    return hasher.hexdigest()


def _checked(frame: pl.DataFrame, *, queries: Sequence[QueryLike], texts: Mapping[str, str]) -> pl.DataFrame:
    """The table in the order and types of its schema, after everything a reader relies on was found to hold."""
    if set(frame.columns) != set(RESULT_SCHEMA):
        raise ValueError(f"a result table has the columns {list(RESULT_SCHEMA)}, this one has {frame.columns}")
    frame = frame.select(RESULT_SCHEMA.names()).cast(dict(RESULT_SCHEMA))
    broken = frame.filter(~pl.col("score").is_finite().fill_null(False))
    if len(broken):
        raise ValueError(f"the score of {broken.row(0, named=True)} is not a finite number; quarantine what caused it")
    known_queries = {query.id for query in queries}
    for column, known in (("query_id", known_queries), ("candidate_id", texts)):
        unknown = [name for name in frame[column].unique(maintain_order=True) if name not in known]
        if unknown:
            raise ValueError(f"{column} {unknown[0]!r} of the result table is not among those given; pass them all")
    return frame


def _record(
    query: QueryLike,
    method: str,
    *,
    ranked: Mapping[str, pl.DataFrame | None],
    texts: Mapping[str, str],
    query_set: str,
) -> dict[str, Any]:
    record = {
        "example_id": query.id,
        "query_set": query_set,
        "method": method,
        "inputs_plaintext": query.prompt,
        "targets_plaintext": query.completion,
    }
    for kind, table in ranked.items():
        ids = [] if table is None else table["candidate_id"].to_list()
        record[f"{kind}s"] = [texts[candidate_id] for candidate_id in ids]
        record[f"{kind}_ids"] = ids
        record[f"{kind}_scores"] = [] if table is None else table["score"].to_list()
    if query.relevant_ids:
        relevant = set(query.relevant_ids)
        record["proponent_correct"] = [candidate_id in relevant for candidate_id in record["proponent_ids"]]
    return record


def _encode(value: Any, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON; a lone surrogate, which UTF-8 has no bytes for, becomes the JSON escape that reads back as it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        raise ValueError(
            f"NaN and infinity cannot be written as JSON ({error}); leave out what has no value"
        ) from error
    return text.encode("utf-8", errors="backslashreplace")
