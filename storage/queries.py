"""Queries: what is asked about.

{"id": "q1", "prompt": "The capital of France is", "completion": " Paris", "relevant_ids": ["d7"]}

One such object a line (JSON Lines), a list of them (``.json``), or a table with these columns (``.csv``, ``.tsv``),
where a cell holds a list as JSON. A query without an id is called after its file and row.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from upath import UPath

from trackstar.storage.digests import digest_of
from trackstar.storage.errors import InputError
from trackstar.storage.json_lines import (
    BYTE_ORDER_MARK,
    kind_of,
    lines,
    open_decompressed,
    parse_object,
    require_encodable,
)
from trackstar.storage.layout import location
from trackstar.storage.reading import Reading
from trackstar.storage.streams import stream_rows

EXPECTED = '{"id": ..., "prompt": ..., "completion": ...}, one object a line'
TABLES = (".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst")
LISTS = frozenset({"relevant_ids", "answer_aliases", "aliases"})
LARGEST_FILE = 1 << 40  # rows: all of them


def _name_integer(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _require_content(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty, expected some text")
    return value


Text = Annotated[str, AfterValidator(require_encodable)]
NonEmptyText = Annotated[Text, AfterValidator(_require_content)]
Id = Annotated[NonEmptyText, BeforeValidator(_name_integer)]


class Query(BaseModel):
    """A completion whose influences are asked for, after a prompt that may be empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id
    prompt: Text = Field(description="context only; empty for a completion that follows nothing")
    completion: NonEmptyText = Field(description="the loss is the sum over it")
    relevant_ids: tuple[Id, ...] | None = Field(None, description="candidates known to be relevant; None: not known")
    answer_aliases: tuple[Text, ...] = Field(
        (),
        validation_alias=AliasChoices("answer_aliases", "aliases"),
        description="other ways to write the answer; without relevant_ids, texts that hold one are evidence",
    )


def read_queries(path: object) -> list[Query]:
    """The queries of a JSON Lines file in its order, blank lines left out.

    Raises:
        InputError: The file is unreadable or empty, a line is not a query, or two queries share an id.
    """
    path = location(path)
    queries: dict[str, Query] = {}
    place_of: dict[str, str] = {}
    for row, place, record in _records(path):
        query = _parse(record, where=f"{path} {place}", default_id=f"{path.name}:{row}")
        if query.id in queries:
            raise InputError(
                f"{path} {place}: id {query.id!r} is already on {place_of[query.id]}, expected one query "
                "an id; rename one of them"
            )
        queries[query.id], place_of[query.id] = query, place
    if not queries:
        raise InputError(f"{path} line 1: no query in the file, expected {EXPECTED}; add at least one")
    return list(queries.values())


def read_ids(path: object) -> list[str]:
    """The ids of a UTF-8 text file, one a line, blank lines left out; an id is all of its line.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or holds no id.
    """
    path = location(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); write it as UTF-8, one id a line") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); give a file with one id a line") from error
    ids = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    if not ids:
        raise InputError(f"{path} holds no id; give a file with one id a line")
    return ids


def queries_digest(queries: Sequence[Query]) -> str:
    """SHA-256 of what the queries say, in their order: not of how the file writes it."""
    return digest_of([query.model_dump(mode="json") for query in queries])


def asked(queries: Sequence[Query]) -> list[dict[str, str]]:
    """What a ranking may depend on: not on what is known about the answer."""
    return [{"id": query.id, "prompt": query.prompt, "completion": query.completion} for query in queries]


def _records(path: UPath) -> Iterator[tuple[int, str, bytes | dict[str, Any] | str]]:
    """Row, place in a person's words, and content of every query: as a line, an object, or why it is none."""
    if path.name.endswith(".json"):
        for row, value in enumerate(_array(path)):
            is_object = isinstance(value, dict)
            yield row, f"row {row + 1}", value if is_object else f"it is {kind_of(value)}, not an object"
    elif path.name.endswith(TABLES):
        found = stream_rows(path, Reading(), first_row=0, num_rows=LARGEST_FILE, byte_offset=None, digest=None)
        for row, record in found:
            yield row, f"row {row + 1}", record if isinstance(record, str) else _cells(record)
    else:
        with open_decompressed(path) as stream:
            for row, line in enumerate(lines(stream)):
                line = line.removeprefix(BYTE_ORDER_MARK) if row == 0 else line
                if line.strip():
                    yield row, f"line {row + 1}", line


def _array(path: UPath) -> list[Any]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be opened ({reason}); name a readable file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON ({error}), expected a list of queries; for one a line, use .jsonl"
        ) from error
    if not isinstance(value, list):
        raise InputError(f"{path} is {kind_of(value)}, expected a list of queries; put it in brackets")
    return value


def _cells(record: dict[str, str]) -> dict[str, Any] | str:
    """A record of strings as an object: an empty cell is an absent one, but for a prompt, and lists are JSON."""
    found: dict[str, Any] = {name: cell for name, cell in record.items() if cell or name == "prompt"}
    for name in LISTS.intersection(found):
        try:
            found[name] = json.loads(found[name])
        except (ValueError, RecursionError):
            return f"{name} is {found[name]!r}, not a list as JSON"
    return found


def _parse(content: bytes | dict[str, Any] | str, *, where: str, default_id: str) -> Query:
    try:
        if isinstance(content, str):
            raise ValueError(content)
        record = parse_object(content) if isinstance(content, bytes) else content
        return Query.model_validate({"id": default_id, **record})
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error)}; correct it: {EXPECTED}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}, expected {EXPECTED}; correct or remove the line") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return f"{field!r} is missing, expected a string"
        case "string_type":
            return f"{field!r} is {kind_of(problem['input'])}, expected a string"
        case "tuple_type":
            return f"{field!r} is {kind_of(problem['input'])}, expected a list of strings"
        case _:
            return f"{field!r} {problem['msg'].removeprefix('Value error, ')}"
