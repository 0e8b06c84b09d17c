"""The share of each predicted token of some documents in their scores, as characters of their texts."""

from collections.abc import Mapping, Sequence

from numpy import ndarray

from trackstar.tasks.models.engine import Engine
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens
from trackstar.tasks.report.passages import Token
from trackstar.tasks.scoring.token_shares import sequence_shares


def document_shares(
    reader: PredictedTokens, engine: Engine, texts: Sequence[str], readout: Mapping[str, ndarray], *, token_budget: int
) -> list[tuple[Token, ...]]:
    """Every predicted token of each text with its share of <φ, w>, in order; the shares of a text add up to it.

    Args:
        readout: w of every block.
        token_budget: Tokens of a batch.
    """
    encoded = engine.tokenizer(list(texts), return_offsets_mapping=True, truncation=False, verbose=False)
    sequences = encoded["input_ids"]
    shares = sequence_shares(reader, engine, sequences, readout, token_budget=token_budget)
    return [
        tuple(_token(offsets[place], text, share) for place, share in enumerate(of_text) if place)
        for text, offsets, of_text in zip(texts, encoded["offset_mapping"], shares, strict=True)
    ]


def _token(offsets: tuple[int, int], text: str, share: float) -> Token:
    """A special token has no characters; those after the first stand for the end of the text."""
    start, stop = offsets
    return Token(start, stop, float(share)) if stop > start else Token(len(text), len(text), float(share))
