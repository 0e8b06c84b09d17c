"""How rows are read as documents: which columns, which format, which special tokens.

    text    one column, or several joined                    every token's loss counts
    pairs   prompt, completion                               the completion's
    chat    messages, tools?                                 the assistant's turns
    tokens  input_ids, labels? loss_mask? attention_mask?    where labels are not −100 and masks not 0

What a row of the last three says is kept as JSON: only a tokenizer can make text of it.
"""

import json
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from trackstar.storage.json_lines import kind_of, require_encodable

Format = Literal["auto", "text", "pairs", "chat", "tokens"]
SpecialTokens = Literal["tokenizer", "none", "bos", "eos", "bos_eos"]
COLUMNS_OF = {
    "pairs": ("prompt", "completion"),
    "chat": ("messages", "tools"),
    "tokens": ("input_ids", "labels", "loss_mask", "completion_mask", "assistant_masks", "attention_mask"),
}
REQUIRED = {"pairs": ("prompt", "completion"), "chat": ("messages",), "tokens": ("input_ids",)}
IGNORED_LABEL = -100


class Reading(BaseModel):
    """What makes a document of a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_column: str = "text"
    text_separator: str = "\n\n"
    text_unit: Literal["file", "paragraph"] = "file"
    format: Format = "auto"
    special_tokens: SpecialTokens = "tokenizer"

    @property
    def columns(self) -> tuple[str, ...]:
        """All that it may look at."""
        text = (self.text_column, *self.text_column.split(","))
        return tuple(dict.fromkeys([*text, *(name for names in COLUMNS_OF.values() for name in names)]))

    def identity(self) -> dict[str, Any]:
        """Return what differs from the default: an index keeps its shards when a setting is added."""
        return {
            name: value
            for name, value in self.model_dump(exclude={"text_column"}).items()
            if value != type(self).model_fields[name].default
        }

    def format_of(self, columns: Any) -> str | None:
        """The format of rows with these columns; None where they have no document."""
        if self.format != "auto":
            return self.format if self._has(self.format, columns) else None
        return next((name for name in ("text", *REQUIRED) if self._has(name, columns)), None)

    def expected(self) -> str:
        """The columns that were looked for, for a sentence."""
        if self.format in REQUIRED:
            return " and ".join(repr(name) for name in REQUIRED[self.format])
        return repr(self.text_column)

    def content_of(self, record: dict[str, Any]) -> "Content":
        """The text of a row, or what its text is to be made of.

        Raises:
            ValueError: It has none.
        """
        format = self.format_of(record)
        if format is None:
            raise ValueError(f"no column {self.expected()}")
        if format == "text":
            return Content(_require_text(self._joined(record)), None)
        if format == "pairs" and not any(_is_list(record[name]) for name in REQUIRED["pairs"]):
            prompt, completion = (string(record[name], name) for name in REQUIRED["pairs"])
            if not completion.strip():
                raise ValueError("empty completion")
            return Content(prompt + completion, _json({"prompt": prompt, "completion": completion}))
        return Content("", _json({name: listed(record, name) for name in COLUMNS_OF[format] if name in record}))

    def _has(self, format: str, columns: Any) -> bool:
        if format == "text":
            return self.text_column in columns or all(name in columns for name in self.text_column.split(","))
        return all(name in columns for name in REQUIRED[format])

    def _joined(self, record: dict[str, Any]) -> str:
        if self.text_column in record:
            return string(record[self.text_column], self.text_column)
        return self.text_separator.join(string(record[name], name) for name in self.text_column.split(","))


class Content(NamedTuple):
    """A document's text, and as JSON what a tokenizer makes its text and tokens of; None where that is the text."""

    text: str
    source: str | None


def string(value: Any, column: str) -> str:
    """A value that must be a string and have a UTF-8 form."""
    if not isinstance(value, str):
        raise ValueError(f"{column} is {kind_of(value)}, not a string")
    try:
        return require_encodable(value)
    except ValueError as error:
        raise ValueError(f"{column} {error}") from error


def listed(record: dict[str, Any], column: str) -> list[Any] | None:
    """A column that must hold a list, or in a file of strings a list as JSON; None where it is null."""
    value = record[column]
    if isinstance(value, str):
        try:
            value = json.loads(value or "null")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{column} is a string that is no JSON list") from error
    if value is None and column not in ("messages", "input_ids", "prompt", "completion"):
        return None
    if not isinstance(value, list):
        raise ValueError(f"{column} is {kind_of(value)}, not a list")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _json(value: dict[str, Any]) -> str:
    try:
        return require_encodable(json.dumps(value, ensure_ascii=False))
    except TypeError as error:
        raise ValueError(f"{error}, which JSON has no word for") from error


def _require_text(text: str) -> str:
    if not text.strip():
        raise ValueError("empty text")
    return text
