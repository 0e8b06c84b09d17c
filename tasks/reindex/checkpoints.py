"""Checkpoints of a training run as they appear: which are whole, in which order, and what has been done with them.

CHECKPOINTS/checkpoint-1000/   what training writes
INDEXES/checkpoint-1000-1f2e3d4c/            its index, named by the checkpoint and its content
INDEXES/results/checkpoint-1000-1f2e3d4c/    standing queries: proponents, asked.json, drift.json, drift.html
"""

import os
import re
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError, StorageError
from trackstar.storage.layout import INDEX, is_link, is_local, location
from trackstar.storage.queries import Query
from trackstar.storage.removal import remove_index
from trackstar.storage.results import read_sealed, write_sealed
from trackstar.storage.writer import changing, unread
from trackstar.tasks.index.contents import Index, read_index
from trackstar.tasks.index.lineage import TRAINER_STATE, step_of
from trackstar.tasks.models.checkpoint_files import (
    Checkpoint,
    adapter_files,
    first_problem,
    problem_of,
)
from trackstar.tasks.models.weight_names import pieces_of_ranks
from trackstar.tasks.scoring.score_pass import ScoreConfig

ASKED = "asked.json"
TRAINER_NAME = r"checkpoint-\d+"
# Names that writers give to what they have not finished: tmp-checkpoint-20, step-20.partial, 20.orbax-checkpoint-tmp-17
UNFINISHED_NAME = r"_?tmp[._-].*|.*[._-](tmp|temp|part|partial|incomplete)([._-]\d+)?"
NAME_DIGITS = 8


class Found(BaseModel):
    """A checkpoint directory; ``missing`` says what a half-written one still lacks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    step: int | None
    missing: str | None

    @property
    def name(self) -> str:
        return location(self.path).name

    @property
    def order(self) -> tuple[bool, int, str]:
        return order_of(self.step, self.name)


class Asked(BaseModel):
    """Which queries a result directory answers, for which checkpoint of which training run, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: str
    name: str
    step: int | None
    digest: str
    queries: tuple[Query, ...]
    score: ScoreConfig
    num_withdrawn: int = 0  # answers of before a withdrawal are given anew

    @property
    def order(self) -> tuple[bool, int, str]:
        return order_of(self.step, self.name)


def order_of(step: int | None, name: str) -> tuple[bool, int, str]:
    """By step; checkpoints that state none come last, by name."""
    return step is None, step or 0, name


def find_checkpoints(directory: str) -> list[Found]:
    """Every checkpoint below a directory, in the order of training; half-written ones are marked.

    A link to a checkpoint that is found by itself is none of its own; nor is a second link to one elsewhere.

    Raises:
        InputError: There is no such directory.
    """
    root = location(directory)
    if not root.is_dir():
        raise InputError(f"{directory} is no directory; give the one that training saves its checkpoints in")
    entries = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    by_place: dict[str, UPath] = {}
    for entry in sorted(entries, key=lambda entry: (is_link(entry), entry.name)):
        by_place.setdefault(_place(entry), entry)
    found = [Found(path=str(entry), step=step_of(entry), missing=missing_of(entry)) for entry in by_place.values()]
    return sorted(found, key=lambda checkpoint: checkpoint.order)


def _place(entry: UPath) -> str:
    """Where a directory really lies; on an object store there are no links."""
    return os.path.realpath(entry.path) if is_local(entry) else str(entry)


def missing_of(checkpoint: UPath) -> str | None:
    """What a checkpoint lacks to be whole, judged by its name and by what loading would read; None when nothing.

    An adapter or the pieces of several ranks will never be whole: nothing is waited for, and the check that follows
    refuses them. So it is with a checkpoint that vanishes while it is looked at.
    """
    if re.fullmatch(UNFINISHED_NAME, checkpoint.name, re.IGNORECASE):
        return "its name says that it is being written"
    try:
        if adapter_files(checkpoint) or pieces_of_ranks(checkpoint):
            return None
        problem = first_problem(checkpoint)
    except InputError as error:
        return str(error)
    except FileNotFoundError:
        return None
    if problem is None and _is_of_trainer(checkpoint) and (state := problem_of(checkpoint / TRAINER_STATE)):
        return state  # the Trainer writes it last
    return problem


def _is_of_trainer(checkpoint: UPath) -> bool:
    return bool(re.fullmatch(TRAINER_NAME, checkpoint.name)) and (checkpoint / "training_args.bin").is_file()


def index_name(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.name}-{checkpoint.digest[:NAME_DIGITS]}"


def distinct(
    found: Sequence[Found], keep_last: int | None, *, identify: Callable[[Found], Checkpoint | None], indexes: str
) -> list[tuple[Found, Checkpoint]]:
    """The whole checkpoints that an index is kept of, in order; of several with one content, one.

    That is the one that has an index already, else the first. Looking goes from the newest back and ends with enough.

    Args:
        identify: Reads every byte of the weights; None for a checkpoint that cannot be read.
    """
    groups: dict[tuple[str, str | None], list[tuple[Found, Checkpoint]]] = {}
    for checkpoint in reversed([checkpoint for checkpoint in found if checkpoint.missing is None]):
        if len(groups) == keep_last:
            break
        if (identity := identify(checkpoint)) is not None:
            groups.setdefault((identity.digest, identity.optimizer_digest), []).append((checkpoint, identity))
    taken = [min(group, key=lambda pair: _rank_in_group(*pair, indexes)) for group in groups.values()]
    return sorted(taken, key=lambda pair: pair[0].order)


def _rank_in_group(found: Found, checkpoint: Checkpoint, indexes: str) -> tuple[bool, tuple[bool, int, str]]:
    return not (location(indexes) / index_name(checkpoint) / INDEX).is_file(), found.order


def remove_old_indexes(directory: str, *, checkpoints: str, kept: set[str]) -> list[str]:
    """Remove the indexes of this checkpoint directory that are not kept; return their names.

    What is no finished index, or is one of a checkpoint from elsewhere, is left alone; so are all results, and whatever
    in an index is not ours. An index that is being read goes next time.
    """
    removed = []
    for entry in sorted(location(directory).iterdir(), key=lambda entry: entry.name):
        if entry.name in kept or is_link(entry) or not _is_index_of(entry, checkpoints):
            continue
        with changing(entry), unread(entry) as is_unread:
            if is_unread:
                remove_index(entry)
                removed.append(entry.name)
    return removed


def _is_index_of(entry: UPath, checkpoints: str) -> bool:
    """Whether this is the index of a checkpoint of this directory, under the name we gave it."""
    try:
        index = read_index(str(entry))
    except (StorageError, InputError):  # damaged, none, or of another format
        return False
    if entry.name != index_name(index.engine.checkpoint):
        return False
    return location(index.engine.checkpoint.path).parent == location(checkpoints)


def asked_of(results: UPath) -> Asked | None:
    """What a result directory answers, or None if it was never finished.

    Raises:
        CorruptionError: What says so is damaged.
    """
    cure = "delete this file and run `trackstar reindex` again: its queries are asked anew"
    try:
        return Asked.model_validate(read_sealed(results / ASKED, cure=cure))
    except MissingError:
        return None
    except ValidationError as error:
        raise CorruptionError(results / ASKED, "is of another version", cure) from error


def require_asked(results: UPath) -> Asked:
    """What a finished result directory answers.

    Raises:
        MissingError: It was never finished.
    """
    asked = asked_of(results)
    if asked is None:
        raise MissingError(results, "holds no finished answers", "run `trackstar reindex` again")
    return asked


def is_later(found: Found, index: Index, *, results: UPath, checkpoints: str) -> bool:
    """Whether a checkpoint comes after that of an index; of another training run each does.

    The results say which step that one was at, though training has deleted its directory since.
    """
    path = location(index.engine.checkpoint.path)
    if path.parent != location(checkpoints):
        return True
    asked = asked_of(results)
    return found.order > (asked.order if asked else order_of(step_of(path), path.name))


def write_asked(results: UPath, asked: Asked) -> None:
    write_sealed(results / ASKED, asked.model_dump(mode="json"))


def previous_results(directory: UPath, asked: Asked) -> UPath | None:
    """The results of the last checkpoint before this one, of the same training run, that was asked anything."""
    earlier = []
    for entry in directory.iterdir():
        other = asked_of(entry)
        if other is not None and other.checkpoints == asked.checkpoints and other.order < asked.order:
            earlier.append((other.order, entry))
    return max(earlier, key=lambda pair: pair[0])[1] if earlier else None
