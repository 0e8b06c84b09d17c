"""What a client asks for."""

from pydantic import Field

from trackstar.storage.queries import Text
from trackstar.tasks.asking.completions import MAX_TOKENS
from trackstar.tasks.asking.settings import ASKED_METHODS
from trackstar.tasks.methods.settings import TRACKSTAR
from trackstar.tasks.runtime.settings import Settings

INDEX_HELP = "Name of an index that is served; by default the first."
MOST_TOKENS = 256
MOST_NEIGHBOURS = 20


class Prompt(Settings):
    """What the model should go on with."""

    index: str | None = Field(None, description=INDEX_HELP)
    prompt: Text = Field(description="What the model reads first.")
    max_tokens: int = Field(MAX_TOKENS, ge=1, le=MOST_TOKENS, description="Tokens of the completion, at most.")


class Question(Settings):
    """A question about a completion."""

    index: str | None = Field(None, description=INDEX_HELP)
    prompt: Text = Field(description="What the model reads first.")
    completion: Text | None = Field(None, description="With its leading space; by default what the model itself says.")
    contrast: Text | None = Field(None, description="Ask about the completion rather than this.")
    methods: tuple[str, ...] = Field(
        (TRACKSTAR,), max_length=len(ASKED_METHODS), description=f"Any of {', '.join(ASKED_METHODS)}."
    )
    top_k: int = Field(10, ge=0, description="Proponents and opponents of each method; 0: every document.")
