"""What queries leave behind in an index, and removing it: the index itself, and every answer already given, stay.

OF_QUERIES   of one query set each: asked again, it costs what it cost the first time
FOR_QUERIES  shared by all query sets, and dear: R_train's factors and norms, the stores of other methods
"""

from typing import NamedTuple

from upath import UPath

from trackstar.storage.errors import LockedError
from trackstar.storage.layout import is_draft_name
from trackstar.storage.removal import artifacts_of, is_ours, remove_artifact
from trackstar.storage.verification import require_index
from trackstar.storage.writer import changing, unread

OF_QUERIES = ("queries", "rankings", "histograms", "tail_patch", "token_influence", "judgements")
FOR_QUERIES = ("factors", "train_norms", "spectrum", "embeddings", "plain_shards")


class Freed(NamedTuple):
    """Of one kind of artifact: how many there were, and what they took."""

    count: int
    size_bytes: int


def prune(index: UPath, *, shared: bool = False, dry_run: bool = False) -> dict[str, Freed]:
    """Remove what queries left behind; return what that frees, by kind.

    Args:
        shared: Also what all query sets share.
        dry_run: Only say what it would free.

    Raises:
        InputError: It is no index.
        LockedError: It is being changed or read.
    """
    require_index(index)
    with changing(index), unread(index) as is_unread:
        if not is_unread:
            raise LockedError(index, "is being read", "try again when that is done")
        freed = {}
        for kind in OF_QUERIES + (FOR_QUERIES if shared else ()):
            found = [path for path in artifacts_of(index / kind) if not is_draft_name(path.name) and is_ours(path)]
            if found:
                freed[kind] = Freed(len(found), sum(path.fs.du(path.path) for path in found))
            for path in [] if dry_run else found:
                remove_artifact(path)
        return freed
