"""Settings of the demo's corpus and of the model that is trained on it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from trackstar.tasks.runtime.settings import Option, Settings


class DemoCorpusConfig(Settings):
    """Size and seed of the demo's corpus."""

    model_config = ConfigDict(title="Corpus of the demo")

    seed: Annotated[int, Option("--seed")] = Field(
        0, ge=0, description="Decides which facts are queried, which decoys they get, and the order."
    )
    num_queries: int = Field(120, ge=3, le=150, description="Queried facts, spread evenly over the three relations.")
    num_decoys: int = Field(4, ge=0, le=6, description="Decoys per queried fact.")


class TrainingConfig(Settings):
    """Shape of the model and how long, and how fast, it learns."""

    model_config = ConfigDict(title="Training")

    seed: Annotated[int, Option("--seed")] = Field(
        0, ge=0, description="Decides the initial weights and the order of the sentences."
    )
    vocabulary_size: int = Field(2048, ge=300, description="Byte-level BPE tokens, special tokens included.")
    hidden_size: int = Field(96, ge=8, multiple_of=4, description="Width of the residual stream.")
    intermediate_size: int = Field(256, ge=8, description="Width of the MLP.")
    num_layers: int = Field(3, ge=1, description="Decoder layers.")
    num_heads: int = Field(4, ge=1, description="Attention heads per layer; must divide hidden_size.")
    num_epochs: int = Field(20, ge=1, description="Passes over the corpus.")
    batch_size: int = Field(32, ge=1, description="Sentences per step.")
    learning_rate: float = Field(4e-3, gt=0, description="Peak of the schedule: linear warm-up, then cosine to zero.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps spent warming up.")
