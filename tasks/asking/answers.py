"""What comes back from a question: typed, as a table, as JSON, and as something a person reads.

``Answer.to_dict`` is the object that ``trackstar ask --json`` prints and ``POST /api/ask`` returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy import ndarray

from trackstar.storage.results import OPPONENT, PROPONENT
from trackstar.tasks.asking.completions import Completion
from trackstar.tasks.report.passages import Token

ANSWER_SCHEMA = {
    "method": pl.String,
    "kind": pl.String,  # PROPONENT or OPPONENT
    "rank": pl.UInt32,
    "id": pl.String,
    "score": pl.Float64,
    "states_answer": pl.Boolean,
    "source": pl.String,
    "text": pl.String,
}
MOST = 0.9  # of all scores, that a spread's low and high enclose


@dataclass(frozen=True)
class Document:
    """A document of the corpus.

    Attributes:
        id: Its own, or file and row.
        text: As it was indexed.
        file: The corpus file it came from, and ``row`` its place there.
        columns: What else the index kept of it (--extra-columns).
    """

    id: str
    text: str
    file: str
    row: int
    columns: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where it comes from, in a line."""
        known = [f"{name} {value}" for name, value in self.columns.items() if value]
        return ", ".join([f"{self.file} row {self.row}", *known])


@dataclass(frozen=True)
class Influence:
    """One document in an answer.

    Attributes:
        kind: PROPONENT or OPPONENT.
        rank: 1 is the highest score of the proponents, the lowest of the opponents.
        tokens: The characters [start, stop) of the text that were predicted, and their shares, which add up to the
            score; of a lexical method, the words that were found. Empty where a method has none.
        states_answer: Whether the text has the completion in it, as whole words.
    """

    method: str
    kind: str
    rank: int
    score: float
    document: Document
    tokens: tuple[Token, ...]
    states_answer: bool

    @property
    def id(self) -> str:
        return self.document.id

    @property
    def text(self) -> str:
        return self.document.text

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "rank": self.rank,
            "id": self.id,
            "score": self.score,
            "text": self.text,
            "tokens": [token._asdict() for token in self.tokens],
        }


@dataclass(frozen=True)
class Spread:
    """How the scores of all documents lie for one question: what a single one of them is held against.

    Attributes:
        num_documents: How many there are.
        low, high: Nine in ten scores lie between the two; estimated from a sample of a large corpus.
        background_best: The highest score of each standing query, where there are any.
    """

    num_documents: int
    mean: float
    deviation: float
    low: float
    high: float
    background_best: tuple[float, ...] = ()

    @classmethod
    def of(cls, sums: ndarray, sample: ndarray, *, background_best: Sequence[float] = ()) -> "Spread":
        """From number, sum and sum of squares of all scores, and a sample of them."""
        count, total, squares = sums.tolist()
        mean = total / count
        low, high = np.quantile(sample, [(1 - MOST) / 2, (1 + MOST) / 2]).tolist()
        deviation = float(np.sqrt(max(squares / count - mean**2, 0.0)))
        return cls(int(count), mean, deviation, low, high, tuple(background_best))

    def place(self, score: float) -> float:
        """How many standard deviations a score lies above the mean of all documents."""
        return (score - self.mean) / self.deviation if self.deviation else 0.0

    def describe(self, score: float) -> str:
        """A sentence on what a score means here."""
        place = self.place(score)
        side = "above" if place >= 0 else "below"
        sentence = (
            f"{score:.3f} is {abs(place):.1f} standard deviations {side} the mean of {self.num_documents:,} documents; "
            f"nine in ten of them lie between {self.low:.3f} and {self.high:.3f}."
        )
        if self.background_best:
            below = sum(best < score for best in self.background_best)
            sentence += f" It is higher than the best score of {below} of {len(self.background_best)} standing queries."
        return sentence

    def to_dict(self) -> dict[str, Any]:
        known = {"num_documents": self.num_documents, "mean": self.mean, "deviation": self.deviation}
        return {**known, "low": self.low, "high": self.high, "background_best": list(self.background_best)}


@dataclass(frozen=True)
class Answer:
    """Which documents carry a completion, by one method or several.

    Attributes:
        probability: Of the completion, by the model the index was made from.
        contrast: What is asked about is the completion rather than this; None without.
        contrast_probability: Of the contrast.
        said: The model's own completion, where none was given.
        proponents, opponents: One method after another, each by rank.
        spreads: By gradient method.
        index: The index that was asked.
        settings: How the scores were made.
    """

    prompt: str
    completion: str
    probability: float
    proponents: tuple[Influence, ...]
    opponents: tuple[Influence, ...]
    index: str
    settings: Mapping[str, Any]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    contrast: str | None = None
    contrast_probability: float | None = None
    said: Completion | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.settings["methods"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """How the question was read, where that is not as it looks."""
        return tuple(self.settings.get("warnings", ()))

    def of(self, method: str, kind: str = PROPONENT) -> list[Influence]:
        """One method's proponents, or its opponents."""
        return [found for found in (self.opponents if kind == OPPONENT else self.proponents) if found.method == method]

    def to_dict(self) -> dict[str, Any]:
        contrast = {} if self.contrast is None else {"contrast": self.contrast}
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            **contrast,
            "probability": self.probability,
            "proponents": [found.to_dict() for found in self.proponents],
            "opponents": [found.to_dict() for found in self.opponents],
            "index": self.index,
            "settings": dict(self.settings),
        }

    def frame(self) -> pl.DataFrame:
        """A row a document: method, kind, rank, id, score, states_answer, source and text."""
        rows = [
            (f.method, f.kind, f.rank, f.id, f.score, f.states_answer, f.document.source, f.text)
            for f in (*self.proponents, *self.opponents)
        ]
        return pl.DataFrame(rows, schema=ANSWER_SCHEMA, orient="row")

    def _repr_html_(self) -> str:
        from trackstar.tasks.asking.answer_html import answer_html

        return answer_html(self)

    def __rich__(self) -> Any:
        from trackstar.tasks.asking.answer_text import answer_text

        return answer_text(self)

    def __str__(self) -> str:
        from trackstar.tasks.asking.answer_text import plain

        return plain(self)


class Documents(Sequence[Document]):
    """Some documents of an index."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = tuple(documents)

    def __getitem__(self, place: Any) -> Any:
        return Documents(self._documents[place]) if isinstance(place, slice) else self._documents[place]

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    def frame(self) -> pl.DataFrame:
        """A row a document: id, text, file, row and what else the index kept."""
        kept = list(dict.fromkeys(name for document in self for name in document.columns))
        rows = [(d.id, d.text, d.file, d.row, *(d.columns.get(name) for name in kept)) for d in self]
        schema = {"id": pl.String, "text": pl.String, "file": pl.String, "row": pl.UInt64}
        return pl.DataFrame(rows, schema={**schema, **dict.fromkeys(kept, pl.String)}, orient="row")

    def _repr_html_(self) -> str:
        from trackstar.tasks.asking.answer_html import documents_html

        return documents_html(self)

    def __rich__(self) -> Any:
        from trackstar.tasks.asking.answer_text import documents_text

        return documents_text(self)

    def __str__(self) -> str:
        from trackstar.tasks.asking.answer_text import plain

        return plain(self)


@dataclass(frozen=True)
class Ranking:
    """The proponents and opponents of several queries by one method; ``frame`` is a result table with texts."""

    table: pl.DataFrame
    settings: Mapping[str, Any]

    def frame(self) -> pl.DataFrame:
        """query_id, method, kind, rank, candidate_id, score and text."""
        return self.table

    def _repr_html_(self) -> str:
        from trackstar.tasks.asking.answer_html import frame_html

        return frame_html(self.table)

    def __str__(self) -> str:
        return str(self.table)
