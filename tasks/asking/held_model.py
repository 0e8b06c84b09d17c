"""The model of an index, loaded with the first question and kept; one thread uses it at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trackstar.tasks.index.contents import Index
from trackstar.tasks.models.engine import Engine, EngineSpec
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens
from trackstar.tasks.scoring.rank import require_same_checkpoint
from trackstar.tasks.scoring.token_shares import predicted_tokens


class HeldModel:
    """Hooks and activations belong to a model and not to a thread, so whoever uses it is alone."""

    def __init__(self, index: Index) -> None:
        self._index, self._lock = index, threading.RLock()
        self._engine: Engine | None = None
        self._reader: PredictedTokens | None = None

    @property
    def spec(self) -> EngineSpec:
        return self._index.engine

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """The model with its tokenizer and gradients.

        Raises:
            InputError: The checkpoint is no longer the one that was indexed.
        """
        with self._lock:
            if self._engine is None:
                require_same_checkpoint(self._index)
                self._engine = Engine(self.spec)
            yield self._engine

    @contextmanager
    def reader(self) -> Iterator[tuple[PredictedTokens, Engine]]:
        """What reads documents token by token."""
        with self.engine() as engine:
            if self._reader is None:
                self._reader = predicted_tokens(engine, self.spec)
            yield self._reader, engine
