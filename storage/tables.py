"""Parquet tables of an artifact: checked against the manifest when they are read."""

import io
from collections.abc import Sequence

import polars as pl
from upath import UPath

from trackstar.storage.manifest import read_checked


def write_table(path: UPath, frame: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    path.write_bytes(buffer.getvalue())


def read_table(directory: UPath, name: str, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A table of a completed artifact, or some of its columns; damaged bytes reach no parser, which they can abort.

    Raises:
        CorruptionError: The file is not what was written.
    """
    return pl.read_parquet(io.BytesIO(read_checked(directory, name)), columns=columns and list(columns))
