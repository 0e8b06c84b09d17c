"""Settings of an index that is open for questions, and the methods it can be asked by."""

from pydantic import ConfigDict, Field

from trackstar.tasks.methods.settings import BM25, DENSE, GRADIENT_METHODS
from trackstar.tasks.runtime.settings import Settings
from trackstar.tasks.scoring.settings import DAMPING

ASKED_METHODS = (*(name for name, preset in GRADIENT_METHODS.items() if preset.is_corrected), BM25, DENSE)


class AskConfig(Settings):
    """How an index is opened for questions."""

    model_config = ConfigDict(title="Ask")

    damping: float | None = Field(
        None, ge=0, description=f"Added to R_train, relative to its mean eigenvalue; by default {DAMPING:g}."
    )
    memory_bytes: int = Field(2 << 30, ge=0, description="What is kept between questions: factors, norms, gradients.")
    dense_encoder: str | None = Field(None, description="Directory of a local sentence encoder, for the method dense.")
    prepare: bool = Field(False, description="Write the factors and norms that the index lacks, once.")
