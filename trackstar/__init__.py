"""Which training examples most influenced this prediction? The front door: what a user imports.

import trackstar

index = trackstar.open("INDEX")
answer = index.ask("The capital of France is", " Paris")

Importing this is fast: torch and all that needs it come with the first index that is opened.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackstar.storage.errors import CorruptionError, InputError, MissingError, StorageError
    from trackstar.storage.queries import Query
    from trackstar.tasks.asking.answers import Answer, Document, Documents, Influence, Ranking, Spread
    from trackstar.tasks.asking.completions import CompletedToken, Completion
    from trackstar.tasks.asking.gradient_scan import Cancelled
    from trackstar.tasks.asking.open_index import OpenIndex
    from trackstar.tasks.asking.settings import AskConfig
    from trackstar.tasks.asking.watching import Progress

__version__ = version("trackstar")

_WHERE = {
    "trackstar.tasks.asking.open_index": ("OpenIndex",),
    "trackstar.tasks.asking.settings": ("AskConfig",),
    "trackstar.tasks.asking.answers": ("Answer", "Document", "Documents", "Influence", "Ranking", "Spread"),
    "trackstar.tasks.asking.completions": ("CompletedToken", "Completion"),
    "trackstar.tasks.asking.gradient_scan": ("Cancelled",),
    "trackstar.tasks.asking.watching": ("Progress",),
    "trackstar.storage.errors": ("CorruptionError", "InputError", "MissingError", "StorageError"),
    "trackstar.storage.queries": ("Query",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Answer", "AskConfig", "Cancelled", "CompletedToken", "Completion", "CorruptionError", "Document", "Documents",
    "Influence", "InputError", "MissingError", "OpenIndex", "Progress", "Query", "Ranking", "Spread", "StorageError",
    "__version__", "open",
]  # fmt: skip


def open(path: object, **settings: Any) -> "OpenIndex":
    """Open a finished index for questions.

    Args:
        path: Its directory or object store URL.
        settings: Those of ``AskConfig``: damping, memory_bytes, dense_encoder, prepare.

    Raises:
        MissingError: There is no finished index.
    """
    from trackstar.tasks.asking.open_index import open_index
    from trackstar.tasks.asking.settings import AskConfig

    return open_index(str(path), AskConfig.model_validate(settings))


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'trackstar' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
