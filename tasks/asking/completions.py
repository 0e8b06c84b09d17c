"""What the model itself says after a prompt, token by token, and how sure it is of each."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.models.tokens import prompt_tokens

MAX_TOKENS = 16
SENTENCE_ENDS = ".!?…。！？"


@dataclass(frozen=True)
class CompletedToken:
    """A token of a completion: its text [start, stop) within it, and its probability given all before it."""

    start: int
    stop: int
    text: str
    probability: float


@dataclass(frozen=True)
class Completion:
    """A model's own continuation of a prompt, each token the likeliest of all."""

    prompt: str
    tokens: tuple[CompletedToken, ...]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def probability(self) -> float:
        """Of all tokens together."""
        product = 1.0
        for token in self.tokens:
            product *= token.probability
        return product

    def __str__(self) -> str:
        return self.text


def complete(engine: Engine, prompt: str, *, max_tokens: int = MAX_TOKENS, to_sentence_end: bool = True) -> Completion:
    """Continue a prompt greedily, to the end of its sentence or line, or for so many tokens.

    Raises:
        InputError: The prompt leaves no room in the model's context, or the model has nothing to say after it.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; a completion needs at least 1")
    ids = prompt_tokens(engine.tokenizer, Query(id="prompt", prompt=prompt, completion="-"))
    if len(ids) >= engine.context:
        raise InputError(
            f"the prompt is {len(ids)} tokens long and the model's context {engine.context}; shorten the prompt"
        )
    tokens: list[CompletedToken] = []
    for text, probability in _continuation(engine, ids, min(max_tokens, engine.context - len(ids))):
        if "\n" in text or (to_sentence_end and text.strip() and not text.strip().strip(SENTENCE_ENDS)):
            break
        start = tokens[-1].stop if tokens else 0
        tokens.append(CompletedToken(start, start + len(text), text, probability))
        if to_sentence_end and text.rstrip().endswith(tuple(SENTENCE_ENDS)):
            break
    return Completion(prompt, tuple(tokens))


@torch.no_grad()
def _continuation(engine: Engine, ids: list[int], max_tokens: int) -> Iterator[tuple[str, float]]:
    """Text and probability of each likeliest token; those that are only together a character come as one."""
    specials = set(engine.tokenizer.all_special_ids)
    context, said, shown, pending = torch.tensor([ids], device=engine.device), [], "", 1.0
    for _ in range(max_tokens):
        logits = engine.model(input_ids=context, use_cache=False).logits[0, -1].float()
        token = int(logits.argmax())
        if token in specials:
            return
        said.append(token)
        pending *= float(torch.softmax(logits, -1)[token])
        context = torch.cat([context, context.new_tensor([[token]])], dim=1)
        # decoded after what was there, as a tokenizer may write a token's leading space only inside of a text
        text = engine.tokenizer.decode([*ids, *said], skip_special_tokens=True)
        before = engine.tokenizer.decode(ids, skip_special_tokens=True)
        new = text.removeprefix(before)[len(shown) :]
        if new and not new.endswith("\ufffd"):
            yield new, pending
            shown, pending = shown + new, 1.0
