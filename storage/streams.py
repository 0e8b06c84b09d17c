"""CSV, TSV and plain text, record by record: a shard is a run of records, and is known by its bytes and the header's.

A record of CSV may span lines. A ``.txt`` file is one document, or one a paragraph: lines between blank ones.
"""

import csv
import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.json_lines import BYTE_ORDER_MARK, LINE_LIMIT_BYTES, lines, open_decompressed, skip
from trackstar.storage.reading import Reading

DELIMITERS = {".csv": ",", ".tsv": "\t"}
Row = dict[str, Any] | str | None  # what a record holds, why it is not to be had, or nothing where it is blank

csv.field_size_limit(LINE_LIMIT_BYTES)


class Lines:
    """Lines as they are taken: counted, and hashed after those of the header."""

    def __init__(self, path: UPath, taken: Iterator[bytes], header: bytes = b"") -> None:
        self._path, self._lines, self._header = path, taken, header
        self.cut()

    def cut(self) -> None:
        """Begin the next shard."""
        self.num_bytes, self._hasher = 0, hashlib.sha256(self._header)

    @property
    def digest(self) -> str:
        return self._hasher.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._lines)
        if len(line) > LINE_LIMIT_BYTES:
            raise InputError(f"{self._path} has a line of more than {LINE_LIMIT_BYTES >> 20} MiB; break it up")
        self._hasher.update(line)
        self.num_bytes += len(line)
        return line


class Header:
    """What a file begins with before its first record, as bytes and as the names of columns."""

    def __init__(self, path: UPath) -> None:
        plain = path.name.removesuffix(".gz").removesuffix(".zst")
        self.delimiter = next((sign for suffix, sign in DELIMITERS.items() if plain.endswith(suffix)), None)
        self.content, self.names = b"", []
        if self.delimiter is not None:
            self._read(path)

    def _read(self, path: UPath) -> None:
        with open_decompressed(path) as stream:
            taken = []
            reader = csv.reader(_decoded(line for line in lines(stream) if not taken.append(line)), **self._dialect)
            try:
                self.names = next(reader, [])
            except csv.Error as error:
                raise InputError(f"{path} has a first line that is no header ({error}); write one") from error
        self.content = b"".join(taken)
        if repeated := [name for name in self.names if self.names.count(name) > 1]:
            raise InputError(f"{path} has two columns {repeated[0]!r}; rename one of them")

    @property
    def _dialect(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, "strict": True}

    def records(self, taken: Iterator[bytes], reading: Reading) -> Iterator[Row]:
        if self.delimiter is None:
            pieces = paragraphs(taken) if reading.text_unit == "paragraph" else whole(taken)
            yield from (_text_row(piece, reading.text_column) for piece in pieces)
            return
        reader = csv.reader(_decoded(taken), **self._dialect)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"malformed CSV: {error}"
                continue
            yield self._row(fields)

    def _row(self, fields: list[str]) -> Row:
        if not fields:
            return None
        if len(fields) != len(self.names):
            return f"{len(fields)} fields, and the header has {len(self.names)}"
        return dict(zip(self.names, fields, strict=True))


def cut_stream(path: UPath, shard_size: int, reading: Reading) -> Iterator[tuple[int, int, int, str]]:
    """Records, first byte, bytes and SHA-256 of each run of ``shard_size`` records."""
    header = Header(path)
    byte_offset = len(header.content)
    with open_decompressed(path) as stream:
        skip(stream, byte_offset)
        taken = Lines(path, lines(stream), header.content)
        records = header.records(taken, reading)
        while num_rows := sum(1 for _ in islice(records, shard_size)):
            yield num_rows, byte_offset, taken.num_bytes, taken.digest
            byte_offset += taken.num_bytes
            taken.cut()


def stream_rows(
    path: UPath, reading: Reading, *, first_row: int, num_rows: int, byte_offset: int | None, digest: str | None
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a run of records that are not blank; without an offset, the first ones of the file.

    Raises:
        ValueError: The bytes are not those of the digest.
    """
    header = Header(path)
    with open_decompressed(path) as stream:
        skip(stream, len(header.content) if byte_offset is None else byte_offset)
        taken = Lines(path, lines(stream), header.content)
        for row, record in enumerate(islice(header.records(taken, reading), num_rows), start=first_row):
            if record is not None:
                yield row, record
    if digest is not None and taken.digest != digest:
        raise ValueError("its bytes are others")


def whole(taken: Iterator[bytes]) -> Iterator[bytes]:
    """All lines as one piece; nothing where there is none."""
    if content := b"".join(taken):
        yield content


def paragraphs(taken: Iterator[bytes]) -> Iterator[bytes]:
    """Runs of lines that are not blank."""
    paragraph = b""
    for line in taken:
        if line.strip():
            paragraph += line
        elif paragraph:
            yield paragraph
            paragraph = b""
    if paragraph:
        yield paragraph


def _decoded(taken: Iterator[bytes]) -> Iterator[str]:
    """A byte that is not UTF-8 becomes a lone surrogate, for which the row that holds it is rejected."""
    return (line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape") for line in taken)


def _text_row(piece: bytes, column: str) -> Row:
    if len(piece) > LINE_LIMIT_BYTES:
        return f"longer than {LINE_LIMIT_BYTES >> 20} MiB"
    try:
        return {column: piece.removeprefix(BYTE_ORDER_MARK).decode()}
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
