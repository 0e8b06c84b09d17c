"""From text to tokens, and which of them a loss is summed over.

The ids of a query are those of prompt and completion tokenized as the one text the model would read. A token that holds
any character of the completion is part of it. Which characters a token holds is read from the tokenizer without its
post-processor, which adds special tokens and, with ``trim_offsets``, takes white space off what a token is said to
hold.
"""

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import Normalizer
from transformers import BatchEncoding, PreTrainedTokenizerBase

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.models.query_warnings import QueryWarning, SpecialToken, query_warnings
from trackstar.tasks.numerics.words import cluster_start


class QueryTokens(NamedTuple):
    """Token ids of prompt and completion, where the completion begins, and what a person should know of them."""

    ids: list[int]
    completion_start: int
    warnings: tuple[QueryWarning, ...] = ()


class _Bare(NamedTuple):
    """A tokenizer without its post-processor, and the special tokens that it finds in a text."""

    tokenizer: Tokenizer
    special: frozenset[str]


class _Held(NamedTuple):
    """A token's place among all, how it is written, and the characters [start, stop) of the text that it holds."""

    place: int
    text: str
    start: int
    stop: int


def tokenize_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole documents, special tokens as the tokenizer adds them, never truncated."""
    return tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]


def tokenize_query(tokenizer: PreTrainedTokenizerBase, query: Query) -> QueryTokens:
    """Tokenize prompt and completion as one text. Special tokens after the completion are left out.

    Raises:
        InputError: The completion yields no token that could be predicted.
    """
    return tokenize_queries(tokenizer, [query])[0]


def tokenize_queries(tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]) -> list[QueryTokens]:
    """``tokenize_query`` of each."""
    bare = without_post_processor(tokenizer)
    return [_tokenize(tokenizer, bare, query) for query in queries]


def _tokenize(tokenizer: PreTrainedTokenizerBase, bare: _Bare, query: Query) -> QueryTokens:
    text = query.prompt + query.completion
    joined = tokenizer(text, return_special_tokens_mask=True, truncation=False, verbose=False)
    held = _held(joined, bare.tokenizer.encode(text, add_special_tokens=False), query)
    ids = joined["input_ids"][: held[-1].place + 1] if held else []
    begins, is_joined = _beginning_of_completion(bare.tokenizer.normalizer, query, held)
    first = next((token for token in held if token.start < token.stop > begins), None)
    if first is None:
        raise InputError(f"query {query.id!r} has a completion {query.completion!r} without tokens; give it some text")
    crossing = text[first.start : first.stop] if is_joined or first.start < len(query.prompt) else None
    warnings = query_warnings(query, crossing=crossing, spelled=_spelled(bare.special, text, ids, held))
    if first.place == 0:  # it would be predicted from nothing
        return QueryTokens([_beginning(tokenizer, query), *ids], 1, warnings)
    return QueryTokens(ids, first.place, warnings)


def _held(joined: BatchEncoding, bare: Encoding, query: Query) -> list[_Held]:
    """Every token of a text that the post-processor did not add."""
    own = [place for place, is_added in enumerate(joined["special_tokens_mask"]) if not is_added]
    tokens = joined.tokens()
    if [tokens[place] for place in own] != bare.tokens:
        raise InputError(
            f"the tokenizer reads query {query.id!r} otherwise than its tokenizer.json says, so that it is not known "
            "where the completion begins; save it again with save_pretrained"
        )
    return [_Held(place, text, *offsets) for place, text, offsets in zip(own, bare.tokens, bare.offsets, strict=True)]


def _beginning_of_completion(normalizer: Normalizer | None, query: Query, held: Sequence[_Held]) -> tuple[int, bool]:
    """Where in the text it begins, and whether the normalizer makes one character of the prompt's last and its first.

    Such a character is held by one token, and the tokenizer may call it the prompt's alone.
    """
    border, text = len(query.prompt), query.prompt + query.completion
    if normalizer is None or normalizer.normalize_str(text).startswith(normalizer.normalize_str(query.prompt)):
        return border, False
    if any(token.start <= border < token.stop for token in held):
        return border, True
    return cluster_start(text, border), True


def _spelled(special: Set[str], text: str, ids: Sequence[int], held: Sequence[_Held]) -> Iterator[SpecialToken]:
    for token in held:
        if token.text in special and token.text in text[token.start : token.stop]:  # not for what it does not know
            is_first = token.place == held[0].place
            yield SpecialToken(token.text, is_repeated=is_first and ids[token.place] in ids[: token.place])


def without_post_processor(tokenizer: PreTrainedTokenizerBase) -> _Bare:
    """It shares model, normalizer and pre-tokenizer, which takes no time however large they are."""
    backend = tokenizer.backend_tokenizer
    bare = Tokenizer(backend.model)
    bare.normalizer, bare.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    added = backend.get_added_tokens_decoder().values()
    special = [token for token in added if token.special]
    bare.add_special_tokens(special)
    bare.add_tokens([token for token in added if not token.special])
    bare.encode_special_tokens = tokenizer.split_special_tokens
    return _Bare(bare, frozenset(token.content for token in special))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, query: Query) -> list[int]:
    """Tokenize the prompt alone, as what a model continues: special tokens added at its end are left out.

    Raises:
        InputError: The prompt is empty and the tokenizer has no token that a text begins with.
    """
    prompt = tokenizer(query.prompt, return_special_tokens_mask=True, truncation=False, verbose=False)
    ids, is_added = prompt["input_ids"], prompt["special_tokens_mask"]
    while len(ids) > 1 and is_added[len(ids) - 1]:
        ids = ids[:-1]
    return ids or [_beginning(tokenizer, query)]


def _beginning(tokenizer: PreTrainedTokenizerBase, query: Query) -> int:
    """The token a text without a prompt is predicted from."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    token = next((candidate for candidate in candidates if candidate is not None), None)
    if token is None:
        raise InputError(
            f"query {query.id!r} has nothing before its completion and the tokenizer no beginning-of-text token; give "
            "it a prompt"
        )
    return token
