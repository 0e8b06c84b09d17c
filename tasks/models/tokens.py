"""From text to tokens, and which of them a loss is summed over."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query


class QueryTokens(NamedTuple):
    """Token ids of prompt and completion, and where the completion begins."""

    ids: list[int]
    completion_start: int


def tokenize_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole documents, special tokens as the tokenizer adds them, never truncated."""
    return tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]


def tokenize_query(tokenizer: PreTrainedTokenizerBase, query: Query) -> QueryTokens:
    """Tokenize prompt and completion as the one text the model would read.

    Where a token would reach across their border, prompt and completion are tokenized apart, so that no part of the
    prompt is ever in the loss. Special tokens after the completion are left out.

    Raises:
        InputError: The completion yields no token that could be predicted.
    """
    joined = tokenizer(
        query.prompt + query.completion,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
        verbose=False,
    )
    ids, offsets, special = joined["input_ids"], joined["offset_mapping"], joined["special_tokens_mask"]
    while ids and special[len(ids) - 1]:
        ids = ids[:-1]
    border = len(query.prompt)
    start = next((i for i in range(len(ids)) if not special[i] and offsets[i][1] > border), len(ids))
    if start < len(ids) and offsets[start][0] < border:
        ids, start = _tokenize_apart(tokenizer, query)
    if start == 0:  # the first token is predicted from nothing
        ids, start = [_beginning(tokenizer, query), *ids], 1
    if start >= len(ids):
        raise InputError(f"query {query.id!r} has a completion {query.completion!r} without tokens; give it some text")
    return QueryTokens(ids, start)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, query: Query) -> list[int]:
    """Tokenize the prompt alone, as what a model continues: special tokens at its end are left out.

    Raises:
        InputError: The prompt is empty and the tokenizer has no token that a text begins with.
    """
    return _prompt_alone(tokenizer, query) or [_beginning(tokenizer, query)]


def _prompt_alone(tokenizer: PreTrainedTokenizerBase, query: Query) -> list[int]:
    with_special = tokenizer(query.prompt, truncation=False, verbose=False, return_special_tokens_mask=True)
    prompt, special = with_special["input_ids"], with_special["special_tokens_mask"]
    while prompt and special[len(prompt) - 1] and len(prompt) > 1:
        prompt = prompt[:-1]
    return prompt


def _tokenize_apart(tokenizer: PreTrainedTokenizerBase, query: Query) -> tuple[list[int], int]:
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    prompt = _prompt_alone(tokenizer, query)
    return [*prompt, *encode(query.completion)], len(prompt)


def _beginning(tokenizer: PreTrainedTokenizerBase, query: Query) -> int:
    """The token a text without a prompt is predicted from."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    token = next((candidate for candidate in candidates if candidate is not None), None)
    if token is None:
        raise InputError(
            f"query {query.id!r} has no prompt and the tokenizer no beginning-of-text token; give it a prompt"
        )
    return token
