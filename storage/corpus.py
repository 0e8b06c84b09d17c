"""A corpus of any size as shards whose identity is their content, and the documents of a shard, batch by batch.

    JSON Lines   .jsonl  .jsonl.gz  .jsonl.zst    a shard is a run of lines
    CSV, TSV     .csv  .tsv, and compressed       a shard is a run of records
    text         .txt, and compressed             a document is a file, or a paragraph
    Parquet      .parquet                         a shard is a range of rows
    Arrow        .arrow, of datasets on disk      a shard is a range of rows

A row is a line or record of the file, counted from 0. It becomes a document, or it is rejected with a reason, or it
is blank and neither of the two; rows and ids depend on nothing but the file: not on compression, shards or batches. A
shard in the middle of a compressed file costs decompressing what lies before it, so many files of some GB read faster
than one of a TB.
"""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from trackstar.storage.arrow_files import (
    arrow_columns,
    arrow_rows,
    count_arrow_rows,
    is_stray,
    require_one_split,
)
from trackstar.storage.digests import digest_file, digest_of
from trackstar.storage.documents import DocumentBatch, Record, Schema, batches
from trackstar.storage.errors import InputError
from trackstar.storage.json_lines import BYTE_ORDER_MARK, lines, open_decompressed, parse_object, pieces, skip
from trackstar.storage.layout import location
from trackstar.storage.reading import Reading
from trackstar.storage.streams import Header, cut_stream, stream_rows

PACKED = ("", ".gz", ".zst")
# Of a directory the first kind that it holds is taken: a README.txt or a list of files beside a corpus is none of it.
KINDS = (
    (*(f".jsonl{packed}" for packed in PACKED), ".parquet"),
    (".arrow",),
    tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in PACKED),
    tuple(f".txt{packed}" for packed in PACKED),
)
SUFFIXES = tuple(suffix for suffixes in KINDS for suffix in suffixes)
STREAMS = KINDS[2] + KINDS[3]

TEXT = Reading()
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


def plan_shards(file: CorpusFile, *, shard_size: int, reading: Reading = TEXT) -> list[CorpusShard]:
    """Cut a file into shards of ``shard_size`` rows, the last one shorter, in one pass; an empty file has none.

    Raises:
        InputError: The file is unreadable, or has no column of a document: for JSON Lines, in none of its first rows.
    """
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}; a shard needs at least one row")
    if file.path.endswith(STREAMS):
        return list(_plan_stream(file, shard_size, reading))
    plan = _plan_table if _is_table(file.path) else _plan_json_lines
    return list(plan(file, shard_size, reading))


def read_documents(
    shard: CorpusShard,
    *,
    batch_size: int,
    reading: Reading = TEXT,
    id_column: str = "id",
    extra_columns: Sequence[str] = (),
) -> Iterator[DocumentBatch]:
    """Every row of a shard that is not blank, at most ``batch_size`` in a batch, as a document or rejected.

    An id that is absent, null or empty becomes ``<id_prefix>:<row>``. Extra columns are carried through as strings,
    anything but a string as its JSON, null where a row has none.

    Raises:
        InputError: The file is unreadable, or is no longer the one the shard was planned from.
    """
    schema = Schema(reading, id_column, tuple(extra_columns), shard.id_prefix)
    if shard.path.endswith(STREAMS):
        rows = _stream_rows(shard, reading)
    else:
        rows = _table_rows(shard, schema) if _is_table(shard.path) else _json_rows(shard)
    return batches(rows, schema, batch_size=batch_size)


def require_documents(files: Sequence[CorpusFile], *, reading: Reading, id_column: str) -> None:
    """Look at the first rows of the first files: each has a document's columns, and some row of some is a document.

    Raises:
        InputError: One is unreadable or has no such column, or none has a usable row.
    """
    reasons, is_undecided = Counter(), len(files) > PROBED_FILES
    first = ""
    for file in files[:PROBED_FILES]:
        path, schema = location(file.path), Schema(reading, id_column, (), file.id_prefix)
        num_rejected = 0
        for batch in batches(_first_rows(path, schema), schema, batch_size=1):
            if len(batch.documents):
                is_undecided = True
                break
            num_rejected += 1
            reasons[batch.rejected["reason"][0]] += 1
            first = first or f"; row {batch.rejected['row'][0]} of {path}: {batch.rejected['reason'][0]}"
        is_undecided = is_undecided or num_rejected >= PROBED_ROWS  # there may be one further on
    if not is_undecided:
        counts = ", ".join(f"{count} rows: {reason}" for reason, count in reasons.most_common(3))
        summed = f" ({counts})" if len(reasons) > 1 else ""
        raise InputError(f"the corpus has no usable document{first}{summed}; check the files, and --text-column")


def _first_rows(path: UPath, schema: Schema) -> Iterator[tuple[int, Record]]:
    reading = schema.reading
    if path.name.endswith(STREAMS):
        _require_columns(path, reading, Header(path).names)
        yield from stream_rows(path, reading, first_row=0, num_rows=PROBED_ROWS, byte_offset=None, digest=None)
    elif path.name.endswith(".arrow"):
        _require_columns(path, reading, arrow_columns(path))
        yield from arrow_rows(path, schema.columns, 0, PROBED_ROWS)
    elif _is_table(path.name):
        with _readable_parquet(path):
            _require_text_type(path, reading)
            first = _scan(path).head(PROBED_ROWS).collect()
        yield from enumerate(first.iter_rows(named=True))
    else:
        _require_text_key(path, reading)
        with open_decompressed(path) as stream:
            yield from _parsed(islice(lines(stream), PROBED_ROWS), 0)


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
    if not path.exists() and glob.has_magic(str(path)):
        return _matched(path)
    if path.is_file():
        if not _is_supported(path.name):
            raise InputError(f"{path} is not a corpus file; expected {_formats()}")
        return [(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; name a {_formats()} file or a directory of them")
    require_one_split(path)
    children = sorted((str(child).removeprefix(str(path)).lstrip("/"), child) for child in path.rglob("*"))
    children = [(child, name) for name, child in children if _is_supported(name) and not _is_hidden(name)]
    files = [(child, name) for child, name in children if child.is_file() and not is_stray(child)]
    for suffixes in KINDS:
        if kind := [(child, name) for child, name in files if name.endswith(suffixes)]:
            return kind
    raise InputError(f"{path} holds no corpus file; expected {_formats()} somewhere below it")


def _matched(pattern: UPath) -> list[tuple[UPath, str]]:
    """The corpus files that a pattern of the shell's kind names, each with its own name."""
    found = sorted(pattern.fs.glob(pattern.path))
    paths = [type(pattern)(path, protocol=pattern.protocol, **pattern.storage_options) for path in found]
    files = [(path, path.name) for path in paths if _is_supported(path.name) and path.is_file()]
    if not files:
        raise InputError(f"{pattern} matches no corpus file; expected {_formats()}")
    return files


def _is_supported(name: str) -> bool:
    return name.endswith(SUFFIXES)


def _is_table(name: str) -> bool:
    return name.endswith((".parquet", ".arrow"))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _formats() -> str:
    plain = [suffix for suffix in SUFFIXES if not suffix.endswith((".gz", ".zst"))]
    return f"{', '.join(plain)} (all but .parquet and .arrow also .gz or .zst)"


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


def _plan_json_lines(file: CorpusFile, shard_size: int, reading: Reading) -> Iterator[CorpusShard]:
    path = location(file.path)
    _require_text_key(path, reading)
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


def _require_text_key(path: UPath, reading: Reading) -> None:
    """Refuse a file that has objects among its first rows, but a document's columns in none of them."""
    found: dict[str, None] = {}
    with open_decompressed(path) as stream:
        for _, record in _parsed(islice(lines(stream), PROBED_ROWS), 0):
            if isinstance(record, dict):
                if reading.format_of(record):
                    return
                found |= dict.fromkeys(record)
    if found:
        raise _no_column(path, reading, list(found))


# CSV, TSV and plain text


def _plan_stream(file: CorpusFile, shard_size: int, reading: Reading) -> Iterator[CorpusShard]:
    path, first_row = location(file.path), 0
    _require_columns(path, reading, Header(path).names)
    for num_rows, byte_offset, num_bytes, digest in cut_stream(path, shard_size, reading):
        yield CorpusShard(
            **file.model_dump(),
            first_row=first_row,
            num_rows=num_rows,
            byte_offset=byte_offset,
            num_bytes=num_bytes,
            digest=digest,
        )
        first_row += num_rows


def _stream_rows(shard: CorpusShard, reading: Reading) -> Iterator[tuple[int, Record]]:
    asked = shard.model_dump(include={"first_row", "num_rows", "byte_offset", "digest"})
    try:
        yield from stream_rows(location(shard.path), reading, **asked)
    except InputError:
        raise
    except ValueError as error:
        raise _changed(shard) from error


def _require_columns(path: UPath, reading: Reading, names: Sequence[str]) -> None:
    if names and not reading.format_of(names):
        raise _no_column(path, reading, names)


# Parquet and Arrow


def _plan_table(file: CorpusFile, shard_size: int, reading: Reading) -> Iterator[CorpusShard]:
    path = location(file.path)
    if path.name.endswith(".arrow"):
        _require_columns(path, reading, arrow_columns(path))
        total = count_arrow_rows(path)
    else:
        with _readable_parquet(path):
            _require_text_type(path, reading)
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


def _table_rows(shard: CorpusShard, schema: Schema) -> Iterator[tuple[int, Record]]:
    path, is_arrow = location(shard.path), shard.path.endswith(".arrow")
    with _readable_parquet(path):
        if digest_of([digest_file(path), shard.first_row, shard.num_rows]) != shard.digest:
            raise _changed(shard)
        if is_arrow:
            yield from arrow_rows(path, schema.columns, shard.first_row, shard.num_rows)
            return
        _require_text_type(path, schema.reading)
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


def _require_text_type(path: UPath, reading: Reading) -> None:
    types = _scan(path).collect_schema()
    format = reading.format_of(types)
    if format is None:
        raise _no_column(path, reading, types.names())
    texts = [name for name in (reading.text_column, *reading.text_column.split(",")) if name in types]
    for name in texts if format == "text" else ():
        if types[name] not in (pl.String, pl.Categorical, pl.Enum):
            raise InputError(
                f"{path} has {types[name]} in column {name!r}, expected String; give --text-column another"
            )


def _no_column(path: UPath, reading: Reading, found: Sequence[str]) -> InputError:
    names = ", ".join(repr(name) for name in found[:20]) + (", …" if len(found) > 20 else "")
    cure = "give --text-column the one with the text" if reading.format in ("auto", "text") else "give another --format"
    return InputError(f"{path} has no column {reading.expected()} but {names}; {cure}")


def _changed(shard: CorpusShard) -> InputError:
    rows = f"rows {shard.first_row} to {shard.first_row + shard.num_rows - 1}"
    return InputError(f"{shard.path} has changed since its shards were planned ({rows}); run again to plan it anew")
