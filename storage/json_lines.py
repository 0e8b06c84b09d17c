"""JSON Lines as bytes: plain, gzip or Zstandard, one line after another, in memory bounded by the longest line.

Lines are parsed one by one rather than as a block by polars: its NDJSON reader turns a list or a number into a
string, turns a lone surrogate into a NUL, and refuses a whole block for one malformed line. Measured on one core,
it is no faster either (286 MB/s, against 321 MB/s line by line).
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import zstandard
from upath import UPath

from trackstar.storage.errors import InputError

LINE_LIMIT_BYTES = 64 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_PIECE_BYTES = 1 << 20
_COMPRESSED_BLOCK_BYTES = 16 << 10  # bounds what a block of extreme compression ratio can expand to
_LARGEST_WINDOW_BYTES = 1 << 31  # `zstd --long=31`, as large public dumps use it

_KINDS = {list: "a list", dict: "an object", bool: "a boolean", int: "an integer", float: "a float", str: "a string"}


@contextmanager
def open_decompressed(path: UPath) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file; its suffix names the compression.

    Raises:
        InputError: The file cannot be opened, or its compressed stream is damaged or cut short.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error}); name a readable file") from error
    with file:
        try:
            yield _decompressor(file, path.name)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise InputError(
                f"{path} is damaged, cut short or not what its suffix says ({error}); copy or compress it again"
            ) from error


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The whole stream, cut at every newline and at least once a MiB."""
    while piece := stream.readline(_PIECE_BYTES):
        yield piece


def lines(stream: BinaryIO, hasher: Any = None) -> Iterator[bytes]:
    """Each line with its newline, hashed as it passes; of an overlong line, only its first ``LINE_LIMIT_BYTES + 1``."""
    hasher = hasher or hashlib.sha256()
    while line := stream.readline(LINE_LIMIT_BYTES + 1):
        hasher.update(line)
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(_PIECE_BYTES)):
            hasher.update(rest)
        yield line


def skip(stream: BinaryIO, num_bytes: int) -> None:
    """Move forward in a stream that was just opened."""
    if stream.seekable():
        stream.seek(num_bytes)
        return
    while num_bytes > 0 and (block := stream.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(block)


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        ValueError: The line holds anything else; bytes and columns are counted from 1.
    """
    if len(line) > LINE_LIMIT_BYTES:
        raise ValueError(f"longer than {LINE_LIMIT_BYTES >> 20} MiB")
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON at column {error.pos + 1}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("malformed JSON: nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise ValueError(f"malformed JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the line is {kind_of(value)}, not an object")
    return value


def require_encodable(text: str) -> str:
    """The text itself, if it has a UTF-8 form: JSON can escape half of a surrogate pair, which has none.

    Raises:
        ValueError: It has not; characters are counted from 1.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start + 1}") from error
    return text


def kind_of(value: Any) -> str:
    """What a value is in JSON's own words."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _decompressor(file: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if name.endswith(".zst"):
        return io.BufferedReader(_ZstandardFile(file), buffer_size=_PIECE_BYTES)
    return file


class _ZstandardFile(io.RawIOBase):
    """Every frame of a Zstandard file. The library's own stream reader takes a truncated file for a whole one."""

    def __init__(self, compressed: BinaryIO) -> None:
        self._compressed = compressed
        self._frame = None
        self._unused = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._decompress_block():
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress_block(self) -> bool:
        """Decompress one more block, of which nothing may come yet; False at the end of the file."""
        block = self._unused or self._compressed.read(_COMPRESSED_BLOCK_BYTES)
        if not block:
            if self._frame is not None:
                raise EOFError("its last Zstandard frame is incomplete")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES).decompressobj()
        self._ready = memoryview(self._frame.decompress(block))
        self._unused = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        return True
