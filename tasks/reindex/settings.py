"""What a new index has to hold to before it serves."""

from typing import ClassVar

from pydantic import ConfigDict, Field

from trackstar.tasks.runtime.settings import Settings


class GateConfig(Settings):
    """Bounds; whatever an index is compared with is the one that serves."""

    model_config = ConfigDict(title="Before an index serves")

    option_prefix: ClassVar[str] = "gate"

    quarantined: float = Field(0.1, ge=0, le=1, title="Quarantined", description="Share of the rows, at most.")
    lost: float = Field(0.01, ge=0, le=1, title="Lost", description="Share of the documents that may be fewer.")
    agreement: float = Field(
        0.3,
        ge=0,
        le=1,
        title="Agreement",
        description="Cosine of stored encodings with their gradients, at least.",
    )
    probability: float = Field(
        0.1, ge=0, le=1, title="Probability", description="Share of the standing completions' that may surely be lost."
    )
    mrr: float = Field(
        0.1, ge=0, le=1, title="MRR", description="Share of that of queries with relevant_ids that may surely be lost."
    )
    overlap: float = Field(
        0.0, ge=0, le=1, title="Overlap", description="Mean rank-biased overlap of the answers, at least; 0: no bound."
    )
