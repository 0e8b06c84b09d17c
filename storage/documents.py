"""Rows into documents: which columns make one, and why a row is rejected."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from trackstar.storage.errors import InputError
from trackstar.storage.reading import Reading, string

BATCH_CHARACTERS = 64 << 20  # a batch of long documents ends early, so that memory does not grow with their length

Record = dict[str, Any] | str  # what a row holds, or why it is not to be had


class DocumentBatch(NamedTuple):
    """Documents (row UInt64, id, text, extra columns: String) and rejected rows (row UInt64, id, reason).

    Where some are not text alone, documents have a column ``content_json``: as JSON what text and tokens are made of.
    """

    documents: pl.DataFrame
    rejected: pl.DataFrame


@dataclass(frozen=True)
class Schema:
    """Which columns of a row make a document."""

    reading: Reading
    id_column: str
    extra_columns: tuple[str, ...]
    id_prefix: str

    def __post_init__(self) -> None:
        if taken := {"row", "id", "text", "content_json"}.intersection(self.extra_columns):
            raise InputError(f"--extra-columns holds {min(taken)!r}, which every document has already; leave it out")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.reading.columns, self.id_column, *self.extra_columns)

    def id_of(self, row: int, record: dict[str, Any]) -> str:
        value = record.get(self.id_column)
        if value is None or value == "":
            return f"{self.id_prefix}:{row}"
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return string(value, self.id_column)

    def extras_of(self, record: dict[str, Any]) -> list[str | None]:
        return [_as_string(record.get(name), name) for name in self.extra_columns]


def batches(rows: Iterator[tuple[int, Record]], schema: Schema, *, batch_size: int) -> Iterator[DocumentBatch]:
    """Every row as a document or rejected, at most ``batch_size`` in a batch."""
    batch = _Batch(schema)
    for row, record in rows:
        batch.add(row, record)
        if batch.num_rows >= batch_size or batch.num_characters >= BATCH_CHARACTERS:
            yield batch.frames()
            batch = _Batch(schema)
    if batch.num_rows:
        yield batch.frames()


@dataclass
class _Batch:
    """Rows of a batch so far."""

    schema: Schema
    num_characters: int = 0
    documents: list[tuple] = field(default_factory=list)
    rejected: list[tuple] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.documents) + len(self.rejected)

    def add(self, row: int, record: Record) -> None:
        """Keep a row, as a document if its id, text and extra columns are all usable."""
        if isinstance(record, str):
            self.rejected.append((row, None, record))
            return
        id_ = None
        try:
            id_ = self.schema.id_of(row, record)
            text, source = self.schema.reading.content_of(record)
            self.documents.append((row, id_, text, *self.schema.extras_of(record), source))
            self.num_characters += len(text) + len(source or "")
        except ValueError as error:
            self.rejected.append((row, id_, str(error)))

    def frames(self) -> DocumentBatch:
        documents = _frame(self.documents, ("id", "text", *self.schema.extra_columns, "content_json"))
        if documents["content_json"].null_count() == len(documents):
            documents = documents.drop("content_json")
        return DocumentBatch(documents, _frame(self.rejected, ("id", "reason")))


def _frame(rows: list[tuple], strings: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"row": pl.UInt64, **dict.fromkeys(strings, pl.String)}, orient="row")


def _as_string(value: Any, column: str) -> str | None:
    if value is None:
        return None
    return string(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), column)
