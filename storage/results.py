"""Results on disk: the ranked candidates of every query and method, and the JSON documents beside them.

``proponents.parquet`` is the table to compute with. ``proponents.jsonl`` says the same with texts, one line per query
and method, in the field names of the data released with Chang et al. 2024 (PAIR-code/pretraining-tda), so that their
viewer opens it.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import polars as pl
from polars.exceptions import PolarsError
from upath import UPath

from trackstar.storage.errors import CorruptionError, MissingError
from trackstar.storage.layout import PROPONENTS_JSONL, PROPONENTS_PARQUET

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
) -> None:
    """Write ``proponents.parquet`` and ``proponents.jsonl``; each appears whole or not at all.

    Args:
        frame: A result table (``RESULT_SCHEMA``).
        queries: Every query the table speaks of; their order is the order of the lines.
        texts: The text of every candidate the table speaks of.
        query_set: The name under which the released format files these queries.

    Raises:
        ValueError: The table has other columns, a score that is not finite, or an id without query or text.
    """
    frame = _checked(frame, queries=queries, texts=texts)
    with write_atomically(directory / PROPONENTS_PARQUET) as file:
        frame.write_parquet(file)
    with write_atomically(directory / PROPONENTS_JSONL) as file:
        for line in released_lines(frame, queries=queries, texts=texts, query_set=query_set):
            file.write(_encode(line) + b"\n")


def read_proponents(directory: UPath) -> pl.DataFrame:
    """The result table of a result directory.

    Raises:
        MissingError: There is none.
        CorruptionError: It cannot be read, or it is not a result table.
    """
    path = directory / PROPONENTS_PARQUET
    try:
        with path.open("rb") as file:
            frame = pl.read_parquet(file)
    except FileNotFoundError:
        raise MissingError(path, "does not exist", CURE) from None
    except PolarsError as error:
        raise CorruptionError(path, "is not readable Parquet", CURE) from error
    if frame.schema != RESULT_SCHEMA:
        raise CorruptionError(path, f"has columns {dict(frame.schema)} and not {dict(RESULT_SCHEMA)}", CURE)
    return frame


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


def write_text(path: UPath, text: str) -> None:
    """Write one UTF-8 text file; it appears whole or not at all."""
    content = text.encode()
    with write_atomically(path) as file:
        file.write(content)


@contextmanager
def write_atomically(path: UPath) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends well; an object store's write does so by itself."""
    is_local = path.protocol in ("", "file")
    target = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}") if is_local else path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("wb") as file:
            yield file
        if is_local:
            target.replace(path)
    finally:
        if is_local:
            target.unlink(missing_ok=True)


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
