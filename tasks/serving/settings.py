"""Settings of the server: how much it takes on at once, and for how long."""

from pydantic import ConfigDict, Field

from trackstar.tasks.runtime.settings import Settings


class ServingConfig(Settings):
    """What bounds the work and the requests of a server."""

    model_config = ConfigDict(title="Server")

    threads: int = Field(2, ge=1, le=64, description="Questions that are answered at once.")
    queue: int = Field(16, ge=0, description="Questions that wait; whoever comes after them is told to (429).")
    timeout_s: float = Field(300, gt=0, description="Seconds after which a question is given up (504).")
    request_bytes: int = Field(1 << 20, ge=1024, description="Largest request (413).")
    most_documents: int = Field(
        10_000, ge=1, description="Documents of each method in an answer, at most, at either end of its ranking."
    )
