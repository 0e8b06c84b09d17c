"""A corpus of any size as shards whose identity is their content, and the documents of a shard, batch by batch.

    JSON Lines   .jsonl  .jsonl.gz  .jsonl.zst    a shard is a run of lines
    Parquet      .parquet                         a shard is a range of rows

A row is a line of the file, counted from 0. It becomes a document, or it is rejected with a reason, or it is blank
and neither of the two; rows and ids depend on nothing but the file: not on compression, shards or batches. A shard
in the middle of a compressed file costs decompressing what lies before it, so many files of some GB read faster
than one of a TB.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from trackstar.storage.documents import DocumentBatch, Record, Schema, batches
from trackstar.storage.errors import InputError
from trackstar.storage.json_lines import BYTE_ORDER_MARK, lines, open_decompressed, parse_object, pieces, skip
from trackstar.storage.layout import location
from trackstar.storage.manifest import digest_file, digest_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

PROBED_ROWS, PROBED_FILES = 1000, 20
PARQUET_SLICE_ROWS = 4096  # every slice decodes the row group it lies in: few rows are slow, many take memory


class CorpusFile(BaseModel):
    """A file of the corpus, and what the ids derived from its rows begin with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    id_prefix: str


class CorpusShard(BaseModel):
    """A run of rows of one file: a unit of work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    id_prefix: str = Field(description='rows without an id are called "<id_prefix>:<row>"')
    first_row: int = Field(ge=0, description="row of the file that the shard begins with")
    num_rows: int = Field(ge=1)
    byte_offset: int = Field(ge=0, description="where the shard begins in the decompressed file; 0 for Parquet")
    num_bytes: int = Field(ge=0, description="decompressed size; that of the whole file for Parquet")
    digest: str = Field(description="SHA-256 of the shard's decompressed lines; for Parquet, of file digest and rows")

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the documents of the shard: where the file lies does not."""
        return {"digest": self.digest, "first_row": self.first_row, "id_prefix": self.id_prefix}


def corpus_files(paths: Sequence[str]) -> list[CorpusFile]:
    """The files that paths name, directories expanded in sorted order, hidden files left out.

    A file's ``id_prefix`` is its name, below the directory that was named and less its compression; parent
    directories are put before it only where two files would share it, so that adding a file to a directory changes
    no id.

    Raises:
        InputError: No path, a path that does not exist, a file in another format, no file, or one file twice.
    """
    if not paths:
        raise InputError(f"the corpus names no path; give at least one {_formats()} file or a directory of them")
    named = [pair for path in paths for pair in _expand(location(path))]
    _refuse_repeated([path for path, _ in named])
    return [
        CorpusFile(path=str(path), id_prefix=prefix)
        for (path, _), prefix in zip(named, _id_prefixes(named), strict=True)
    ]


def plan_shards(file: CorpusFile, *, shard_size: int, text_column: str = "text") -> list[CorpusShard]:
    """Cut a file into shards of ``shard_size`` rows, the last one shorter, in one pass; an empty file has none.

    Raises:
        InputError: The file is unreadable, or has no text column: for JSON Lines, in none of its first rows.
    """
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}; a shard needs at least one row")
    plan = _plan_parquet if _is_parquet(file.path) else _plan_json_lines
    return list(plan(file, shard_size, text_column))


def read_documents(
    shard: CorpusShard,
    *,
    batch_size: int,
    text_column: str = "text",
    id_column: str = "id",
    extra_columns: Sequence[str] = (),
) -> Iterator[DocumentBatch]:
    """Every row of a shard that is not blank, at most ``batch_size`` in a batch, as a document or rejected.

    An id that is absent, null or empty becomes ``<id_prefix>:<row>``. Extra columns are carried through as strings,
    anything but a string as its JSON, null where a row has none.

    Raises:
        InputError: The file is unreadable, or is no longer the one the shard was planned from.
    """
    schema = Schema(text_column, id_column, tuple(extra_columns), shard.id_prefix)
    rows = _parquet_rows(shard, schema) if _is_parquet(shard.path) else _json_rows(shard)
    return batches(rows, schema, batch_size=batch_size)


def require_documents(files: Sequence[CorpusFile], *, text_column: str, id_column: str) -> None:
    """Look at the first rows of the first files: each has the text column, and some row of some file is a document.

    Raises:
        InputError: One is unreadable or has no text column, or none has a usable row.
    """
    reason, is_undecided = "", len(files) > PROBED_FILES
    for file in files[:PROBED_FILES]:
        path, schema = location(file.path), Schema(text_column, id_column, (), file.id_prefix)
        rows = _first_parquet_rows if _is_parquet(file.path) else _first_json_rows
        num_rejected = 0
        for batch in batches(rows(path, text_column), schema, batch_size=1):
            if len(batch.documents):
                is_undecided = True
                break
            num_rejected += 1
            reason = reason or f"; row {batch.rejected['row'][0]} of {path}: {batch.rejected['reason'][0]}"
        is_undecided = is_undecided or num_rejected >= PROBED_ROWS  # there may be one further on
    if not is_undecided:
        raise InputError(f"the corpus has no usable document{reason}; check the files, and --text-column")


def _first_json_rows(path: UPath, text_column: str) -> Iterator[tuple[int, Record]]:
    _require_text_key(path, text_column)
    with open_decompressed(path) as stream:
        yield from _parsed(islice(lines(stream), PROBED_ROWS), 0)


def _first_parquet_rows(path: UPath, text_column: str) -> Iterator[tuple[int, Record]]:
    with _readable_parquet(path):
        _require_text_type(path, text_column)
        first = _scan(path).head(PROBED_ROWS).collect()
    yield from enumerate(first.iter_rows(named=True))


def _refuse_repeated(paths: Sequence[UPath]) -> None:
    """Refuse a file that is there twice: named twice, by a link, or compressed beside its plain form."""
    first: dict[str, UPath] = {}
    for path in paths:
        for name in {_uncompressed(str(path)), _uncompressed(str(path.resolve()))}:
            if name in first:
                raise InputError(f"{path} and {first[name]} are the same file of the corpus; name one of the two")
            first[name] = path


def _uncompressed(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _expand(path: UPath) -> list[tuple[UPath, str]]:
    """The files below a path, each with its name relative to it."""
    path = path.absolute()
    if path.is_file():
        if not _is_supported(path.name):
            raise InputError(f"{path} is not a corpus file; expected {_formats()}")
        return [(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; name a {_formats()} file or a directory of them")
    children = sorted((str(child).removeprefix(str(path)).lstrip("/"), child) for child in path.rglob("*"))
    children = [(child, name) for name, child in children if _is_supported(name) and not _is_hidden(name)]
    files = [(child, name) for child, name in children if child.is_file()]
    if not files:
        raise InputError(f"{path} holds no corpus file; expected {_formats()} somewhere below it")
    return files


def _is_supported(name: str) -> bool:
    return name.endswith(SUFFIXES)


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _formats() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _id_prefixes(named: Sequence[tuple[UPath, str]]) -> list[str]:
    """Each name, with as many parent directories before it as tell it from the others."""
    names = [_uncompressed(str(path)) for path, _ in named]
    depths = [name.count("/") + 1 for _, name in named]
    while True:
        prefixes = ["/".join(name.split("/")[-depth:]) for name, depth in zip(names, depths, strict=True)]
        counts = Counter(prefixes)
        if len(counts) == len(prefixes):
            return prefixes
        depths = [depth + (counts[prefix] > 1) for depth, prefix in zip(depths, prefixes, strict=True)]


# JSON Lines


def _plan_json_lines(file: CorpusFile, shard_size: int, text_column: str) -> Iterator[CorpusShard]:
    path = location(file.path)
    _require_text_key(path, text_column)
    first_row = byte_offset = 0
    with open_decompressed(path) as stream:
        for num_rows, num_bytes, digest in _cut(pieces(stream), shard_size):
            yield CorpusShard(
                **file.model_dump(),
                first_row=first_row,
                num_rows=num_rows,
                byte_offset=byte_offset,
                num_bytes=num_bytes,
                digest=digest,
            )
            first_row += num_rows
            byte_offset += num_bytes


def _cut(pieces: Iterator[bytes], shard_size: int) -> Iterator[tuple[int, int, str]]:
    """Rows, bytes and SHA-256 of each run of ``shard_size`` lines."""
    num_rows, num_bytes, hasher, piece = 0, 0, hashlib.sha256(), b""
    for piece in pieces:
        hasher.update(piece)
        num_bytes += len(piece)
        num_rows += piece.endswith(b"\n")
        if num_rows == shard_size:
            yield num_rows, num_bytes, hasher.hexdigest()
            num_rows, num_bytes, hasher = 0, 0, hashlib.sha256()
    if num_bytes:
        yield num_rows + (not piece.endswith(b"\n")), num_bytes, hasher.hexdigest()


def _json_rows(shard: CorpusShard) -> Iterator[tuple[int, Record]]:
    path, hasher = location(shard.path), hashlib.sha256()
    with open_decompressed(path) as stream:
        skip(stream, shard.byte_offset)
        yield from _parsed(islice(lines(stream, hasher), shard.num_rows), shard.first_row)
    if hasher.hexdigest() != shard.digest:
        raise _changed(shard)


def _parsed(lines: Iterator[bytes], first_row: int) -> Iterator[tuple[int, Record]]:
    for row, line in enumerate(lines, start=first_row):
        if row == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.isspace() or not line:
            continue
        try:
            yield row, parse_object(line)
        except ValueError as error:
            yield row, str(error)


def _require_text_key(path: UPath, text_column: str) -> None:
    """Refuse a file that has objects among its first rows, but a text column in none of them."""
    found: dict[str, None] = {}
    with open_decompressed(path) as stream:
        for _, record in _parsed(islice(lines(stream), PROBED_ROWS), 0):
            if isinstance(record, dict):
                if text_column in record:
                    return
                found |= dict.fromkeys(record)
    if found:
        raise _no_text_column(path, text_column, list(found))


# Parquet


def _plan_parquet(file: CorpusFile, shard_size: int, text_column: str) -> Iterator[CorpusShard]:
    path = location(file.path)
    with _readable_parquet(path):
        _require_text_type(path, text_column)
        total = _scan(path).select(pl.len()).collect().item()
    file_digest, num_bytes = digest_file(path), path.stat().st_size
    for first_row in range(0, total, shard_size):
        num_rows = min(shard_size, total - first_row)
        yield CorpusShard(
            **file.model_dump(),
            first_row=first_row,
            num_rows=num_rows,
            byte_offset=0,
            num_bytes=num_bytes,
            digest=digest_of([file_digest, first_row, num_rows]),
        )


def _parquet_rows(shard: CorpusShard, schema: Schema) -> Iterator[tuple[int, Record]]:
    path = location(shard.path)
    with _readable_parquet(path):
        if digest_of([digest_file(path), shard.first_row, shard.num_rows]) != shard.digest:
            raise _changed(shard)
        _require_text_type(path, schema.text_column)
        frame = _scan(path)
        frame = frame.select([name for name in frame.collect_schema() if name in schema.columns])
        end_row = shard.first_row + shard.num_rows
        for first_row in range(shard.first_row, end_row, PARQUET_SLICE_ROWS):
            part = frame.slice(first_row, min(PARQUET_SLICE_ROWS, end_row - first_row)).collect()
            yield from enumerate(part.iter_rows(named=True), start=first_row)


@contextmanager
def _readable_parquet(path: UPath) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as Parquet ({reason}); copy or write it again") from error


def _scan(path: UPath) -> pl.LazyFrame:
    return pl.scan_parquet(str(path), glob=False)  # a file name may hold brackets


def _require_text_type(path: UPath, text_column: str) -> None:
    types = _scan(path).collect_schema()
    if text_column not in types:
        raise _no_text_column(path, text_column, types.names())
    if types[text_column] not in (pl.String, pl.Categorical, pl.Enum):
        raise InputError(
            f"{path} has {types[text_column]} in column {text_column!r}, expected String; give --text-column another"
        )


def _no_text_column(path: UPath, text_column: str, found: Sequence[str]) -> InputError:
    names = ", ".join(repr(name) for name in found[:20]) + (", …" if len(found) > 20 else "")
    return InputError(f"{path} has no column {text_column!r} but {names}; give --text-column the one with the text")


def _changed(shard: CorpusShard) -> InputError:
    rows = f"rows {shard.first_row} to {shard.first_row + shard.num_rows - 1}"
    return InputError(f"{shard.path} has changed since its shards were planned ({rows}); run again to plan it anew")
