"""Settings of the measures that judge rankings."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.runtime.settings import Option, Settings


class TailPatchConfig(Settings):
    """The extra training step. The optimizer is Adafactor without momentum, with the index's second moment."""

    model_config = ConfigDict(title="Tail-patch")
    option_prefix = "tail-patch"

    num_proponents: Annotated[int, Option("--tail-patch")] = Field(
        10, ge=0, description="Proponents of each query and method; 0: none, skip it."
    )
    learning_rate: float = Field(3e-4, gt=0, description="Root mean square of a step at most, per parameter.")


class EntailmentConfig(Settings):
    """What is judged, and what counts as evidence."""

    model_config = ConfigDict(title="Entailment")
    option_prefix = "entailment"

    threshold: float = Field(0.5, gt=0, lt=1, description="A document that entails the fact this surely is evidence.")
    depth: int = Field(10, ge=1, description="Documents judged, of each method and query.")


class Judge(NamedTuple):
    """The directory of an entailment model, and what it is asked."""

    path: str
    config: EntailmentConfig


def require_undecided(queries: Sequence[Query]) -> None:
    """Raise InputError where an entailment model would have nothing to judge."""
    if all(query.relevant_ids is not None or query.answer_aliases for query in queries):
        raise InputError(
            "every query has relevant_ids or aliases, and --entailment-model is for queries with neither; leave it out"
        )
