"""Withdrawals that hold for every index of a directory, present and future: ``INDEXES/withdrawn.json``, kept twice.

Nothing can compute anew who was withdrawn. Each file checks itself and only ever grows: where the two differ, a writer
was killed between them, and the longer one counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from upath import UPath

from trackstar.storage.errors import CorruptionError
from trackstar.storage.layout import WITHDRAWN, WITHDRAWN_COPY
from trackstar.storage.partial_files import write_atomically
from trackstar.storage.sealed import sealed, unsealed

MEMBER = "withdrawals"


def read_standing(indexes: UPath) -> list[dict[str, Any]]:
    """Every withdrawal, the oldest first: ids, at, reason.

    Raises:
        CorruptionError: Neither file can be read, and there is one.
    """
    found, damage = [], None
    for path in (indexes / WITHDRAWN, indexes / WITHDRAWN_COPY):
        try:
            found.append(unsealed(path.read_bytes())[MEMBER])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, KeyError) as error:
            damage = error
    if not found and damage is not None:
        cure = "put one of the two back from a backup; only if every withdrawn document may return, delete both"
        both = f"and {WITHDRAWN_COPY} beside it are both damaged or gone ({damage}): nobody knows who was withdrawn"
        raise CorruptionError(indexes / WITHDRAWN, both, cure)
    return max(found, key=len, default=[])


def write_standing(indexes: UPath, withdrawals: Sequence[Mapping[str, Any]]) -> None:
    """Write both files; the one that counts where they differ is written first."""
    content = sealed({MEMBER: list(withdrawals)})
    for name in (WITHDRAWN_COPY, WITHDRAWN):
        with write_atomically(indexes / name) as file:
            file.write(content)
