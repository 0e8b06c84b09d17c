"""Who looks on while an answer is made, and whether anybody still does."""

from collections.abc import Callable
from typing import NamedTuple

from trackstar.tasks.asking.gradient_scan import Cancelled, Found


class Progress(NamedTuple):
    """How far an answer is.

    Attributes:
        stage: "norms" (a first question to an index without them), "scores" or "tokens".
        method: Whose scores.
        done, total: Documents; shards and blocks while norms are measured.
        found: What the pass has found so far; ``OpenIndex.leaders`` shows its documents.
    """

    stage: str
    method: str
    done: int
    total: int
    found: Found | None = None


class Watch(NamedTuple):
    """Who is told how far an answer is, and who is asked whether anybody still waits for it."""

    progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None

    def tell(self, progress: Progress) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("the question was cancelled")
        if self.progress is not None:
            self.progress(progress)
