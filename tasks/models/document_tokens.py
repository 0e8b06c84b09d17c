"""A document's tokens and which of their losses count, as in training.

text    as the tokenizer reads it; every token's loss counts
pairs   prompt and completion as one text; from the first token that holds any of the completion
chat    the tokenizer's own template; what it marks as generated, else each assistant's turn up to the next turn
tokens  as they are; what labels and masks leave
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jinja2 import TemplateError
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.storage.reading import IGNORED_LABEL, SpecialTokens
from trackstar.tasks.models.tokens import tokenize_documents, tokenize_query, without_post_processor
from trackstar.tasks.numerics.batching import Targets

INPUT_IDS, IS_TARGET = "input_ids", "is_target"
MASKS = ("loss_mask", "completion_mask", "assistant_masks")
GENERATION = re.compile(r"\{%-?\s*generation")


class DocumentTokens(NamedTuple):
    """Token ids, which of them are predicted, the text they are of, and why they are of no use, or None."""

    ids: list[int]
    targets: Targets
    text: str
    reason: str | None = None

    @property
    def num_targets(self) -> int:
        return int(self.targets[1:].sum()) if isinstance(self.targets, ndarray) else max(len(self.ids) - 1, 0)


def read_tokens(
    tokenizer: PreTrainedTokenizerBase,
    documents: pl.DataFrame,
    *,
    special_tokens: SpecialTokens = "tokenizer",
    vocabulary_size: int | None = None,
) -> list[DocumentTokens]:
    """The tokens of documents as they were read from the corpus.

    Raises:
        InputError: The tokenizer lacks what is asked for: a chat template, a token for beginning or end.
    """
    texts = documents["text"].to_list()
    sources = documents["content_json"].to_list() if "content_json" in documents.columns else [None] * len(texts)
    if special_tokens == "tokenizer" and not any(sources):
        ids = tokenize_documents(tokenizer, texts) if texts else []
        return [DocumentTokens(row, 1, text) for row, text in zip(ids, texts, strict=True)]
    reader = _Reader(tokenizer, special_tokens)
    found = [reader(text, source) for text, source in zip(texts, sources, strict=True)]
    return [_within(row, vocabulary_size) for row in found]


def with_tokens(documents: pl.DataFrame, found: Sequence[DocumentTokens]) -> pl.DataFrame:
    """The documents with the texts that tokens are of, and with the tokens where those are not the text's own."""
    documents = documents.drop("content_json", strict=False).with_columns(
        text=pl.Series([row.text for row in found], dtype=pl.String)
    )
    if not any(isinstance(row.targets, ndarray) for row in found):
        return documents
    masked = [row if isinstance(row.targets, ndarray) else None for row in found]
    return documents.with_columns(
        pl.Series(INPUT_IDS, [row and row.ids for row in masked], dtype=pl.List(pl.UInt32)),
        pl.Series(IS_TARGET, [row and row.targets.tolist() for row in masked], dtype=pl.List(pl.Boolean)),
    )


def kept_tokens(tokenizer: PreTrainedTokenizerBase, documents: pl.DataFrame) -> list[DocumentTokens]:
    """The tokens of documents of an index."""
    texts = documents["text"].to_list()
    found = [
        DocumentTokens(ids, 1, text) for ids, text in zip(tokenize_documents(tokenizer, texts), texts, strict=True)
    ]
    if INPUT_IDS in documents.columns:
        kept = documents.select(INPUT_IDS, IS_TARGET).iter_rows()
        found = [
            plain if ids is None else DocumentTokens(ids, np.array(is_target, dtype=bool), plain.text)
            for plain, (ids, is_target) in zip(found, kept, strict=True)
        ]
    return found


def offsets(tokenizer: PreTrainedTokenizerBase, found: DocumentTokens) -> list[tuple[int, int]]:
    """The characters [start, stop) of the text that each token holds: none where that is not known, or special."""
    if not isinstance(found.targets, ndarray):
        read = tokenizer(found.text, return_offsets_mapping=True, truncation=False, verbose=False)
        return read["offset_mapping"]
    read = tokenizer(found.text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    ids, places = read["input_ids"], [(0, 0)] * len(found.ids)
    for start in range(len(found.ids) - len(ids) + 1):
        if found.ids[start : start + len(ids)] == ids:
            places[start : start + len(ids)] = read["offset_mapping"]
            break
    return places


class _Reader:
    """From a row to its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> None:
        self._tokenizer, self._special_tokens = tokenizer, special_tokens
        self._bare = without_post_processor(tokenizer).tokenizer
        self._bos = [self._special("bos")] if special_tokens in ("bos", "bos_eos") else []
        self._eos = [self._special("eos")] if special_tokens in ("eos", "bos_eos") else []

    def __call__(self, text: str, source: str | None) -> DocumentTokens:
        try:
            if source is None:
                ids = self._surrounded(text)
                return DocumentTokens(ids, 1, text) if self._special_tokens == "tokenizer" else _document(ids, 1, text)
            value = json.loads(source)
            if "messages" in value or isinstance(value.get("prompt"), list):
                template = self._template()
            if "messages" in value:
                return self._chat(template, value["messages"], value.get("tools"))
            if "input_ids" in value:
                return self._given(value)
            if isinstance(value["prompt"], list):
                return self._chat_pair(value["prompt"], value["completion"])
            return self._pair(value["prompt"], value["completion"])
        except (ValueError, TemplateError) as error:
            if isinstance(error, _NoTemplate):
                raise InputError(str(error)) from error
            return DocumentTokens([], np.zeros(0, dtype=bool), text, str(error))

    def _special(self, name: str) -> int:
        token = getattr(self._tokenizer, f"{name}_token_id")
        if token is None:
            raise InputError(f"the tokenizer has no {name} token, which --special-tokens asks for; choose another")
        return token

    def _surrounded(self, text: str) -> list[int]:
        if self._special_tokens == "tokenizer":
            return tokenize_documents(self._tokenizer, [text])[0]
        return [*self._bos, *self._ids(text), *self._eos]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def _pair(self, prompt: str, completion: str) -> DocumentTokens:
        text = prompt + completion
        asked = tokenize_query(self._tokenizer, Query.model_construct(id="", prompt=prompt, completion=completion))
        mask = self._tokenizer(text, return_special_tokens_mask=True, truncation=False, verbose=False)
        num_before = mask["special_tokens_mask"].index(0)  # special tokens that the tokenizer begins with
        is_completed = asked.ids != mask["input_ids"][: len(asked.ids)]  # by a token to predict the first one from
        start = 0 if is_completed else asked.completion_start
        if self._special_tokens != "tokenizer":
            start += len(self._bos) - num_before
        return _document(self._surrounded(text), max(start, 0), text)

    def _given(self, value: Mapping[str, Any]) -> DocumentTokens:
        ids = _integers(value["input_ids"], "input_ids")
        is_target = np.ones(len(ids), dtype=bool)
        if (labels := value.get("labels")) is not None:
            labels = np.array(_like(labels, ids, "labels"))
            is_target &= labels != IGNORED_LABEL
            if (other := is_target & (labels != np.array(ids))).any():
                raise ValueError(f"labels differ from input_ids at token {int(other.argmax())}, expected both the same")
        for name in MASKS:
            if (mask := value.get(name)) is not None:
                is_target &= np.array(_like(mask, ids, name)) != 0
        if (attended := value.get("attention_mask")) is not None:
            attended = np.array(_like(attended, ids, "attention_mask")) != 0
            places = attended.nonzero()[0]
            first, stop = (places[0], places[-1] + 1) if len(places) else (0, 0)
            if not attended[first:stop].all():
                raise ValueError("attention_mask leaves out tokens between others, expected padding alone")
            ids, is_target = ids[first:stop], is_target[first:stop]
        return DocumentTokens(ids, is_target, self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _chat(self, template: str, messages: list[Any], tools: list[Any] | None) -> DocumentTokens:
        messages = [_message(message) for message in messages]
        options = {"tools": _without_nulls(tools)} if tools else {}
        text = self._render(messages, **options)
        if GENERATION.search(template):
            read = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
            )
            return DocumentTokens(read["input_ids"], np.array(read["assistant_masks"], dtype=bool), text)
        spans = [
            self._turn(messages, number, text, options)
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        return self._masked(text, spans)

    def _chat_pair(self, prompt: list[Any], completion: list[Any]) -> DocumentTokens:
        prompt, completion = ([_message(message) for message in part] for part in (prompt, completion))
        text = self._render([*prompt, *completion])
        before = self._render(prompt, add_generation_prompt=True)
        return self._masked(text, [_span(text, before, text)])

    def _turn(self, messages: list[Any], number: int, text: str, options: Mapping[str, Any]) -> tuple[int, int]:
        before = self._render(messages[:number], add_generation_prompt=True, **options) if number else ""
        return _span(text, before, self._render(messages[: number + 1], **options))

    def _render(self, messages: list[Any], **options: Any) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def _template(self) -> str:
        try:
            return self._tokenizer.get_chat_template()
        except ValueError as error:
            raise _NoTemplate(
                "the corpus has chats and the checkpoint's tokenizer has no one chat template; save the tokenizer that "
                "it was trained with, or give --format text and --text-column"
            ) from error

    def _masked(self, text: str, spans: Sequence[tuple[int, int]]) -> DocumentTokens:
        encoding = self._bare.encode(text, add_special_tokens=False)
        if encoding.ids != self._ids(text):
            raise ValueError("the tokenizer reads the text otherwise than its tokenizer.json says")
        held = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        is_target = np.zeros(len(held), dtype=bool)
        for start, stop in spans:
            is_target |= (held[:, 1] > start) & (held[:, 0] < stop)
        return DocumentTokens(encoding.ids, is_target, text)


class _NoTemplate(ValueError):
    """The tokenizer cannot render chats: not a row's fault."""


def _document(ids: list[int], start: int, text: str) -> DocumentTokens:
    return DocumentTokens(ids, np.arange(len(ids)) >= start, text)


def _span(text: str, before: str, up_to: str) -> tuple[int, int]:
    if not (text.startswith(before) and text.startswith(up_to)):
        raise ValueError(
            "the chat template writes a turn otherwise when others follow, so that it is not known which tokens it has"
        )
    return len(before), len(up_to)


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise ValueError("a message is no object with a role")
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    """What a table's columns add where other rows have a key and this one has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _integers(values: list[Any], column: str) -> list[int]:
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"{column} holds something else than integers")
    return [int(value) for value in values]


def _like(values: list[Any], ids: Sequence[int], column: str) -> list[int]:
    if len(values) != len(ids):
        raise ValueError(f"{column} has {len(values)} entries, and input_ids {len(ids)}")
    return _integers(values, column)


def _within(found: DocumentTokens, vocabulary_size: int | None) -> DocumentTokens:
    if vocabulary_size is not None and found.ids and not 0 <= min(found.ids) <= max(found.ids) < vocabulary_size:
        wrong = next(token for token in found.ids if not 0 <= token < vocabulary_size)
        reason = f"token id {wrong} is outside the model's vocabulary of {vocabulary_size}"
        return DocumentTokens([], np.zeros(0, dtype=bool), found.text, reason)
    return found
