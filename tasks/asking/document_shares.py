"""The share of each predicted token of some documents in their scores, as characters of their texts."""

from collections.abc import Mapping, Sequence

from numpy import ndarray

from trackstar.tasks.models.document_tokens import DocumentTokens, offsets
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens
from trackstar.tasks.report.passages import Token
from trackstar.tasks.scoring.token_shares import sequence_shares


def document_shares(
    reader: PredictedTokens,
    engine: Engine,
    documents: Sequence[DocumentTokens],
    readout: Mapping[str, ndarray],
    *,
    token_budget: int,
) -> list[tuple[Token, ...]]:
    """Every predicted token of each document with its share of <φ, w>, in order; a document's shares add up to it.

    Args:
        readout: w of every block.
        token_budget: Tokens of a batch.
    """
    shares = sequence_shares(reader, engine, documents, readout, token_budget=token_budget)
    return [
        tuple(
            _token(place, document.text, share)
            for number, (place, share) in enumerate(zip(offsets(engine.tokenizer, document), of_document, strict=True))
            if number
        )
        for document, of_document in zip(documents, shares, strict=True)
    ]


def _token(place: tuple[int, int], text: str, share: float) -> Token:
    """A special token has no characters; those after the first stand for the end of the text."""
    start, stop = place
    return Token(start, stop, float(share)) if stop > start else Token(len(text), len(text), float(share))
