"""Checkpoints of a training run as they appear: which are whole, in which order, and what has been done with them.

CHECKPOINTS/checkpoint-1000/   what training writes
INDEXES/checkpoint-1000-1f2e3d4c/            its index, named by the checkpoint and its content
INDEXES/results/checkpoint-1000-1f2e3d4c/    standing queries: proponents, asked.json, drift.json, drift.html
"""

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError, StorageError
from trackstar.storage.layout import is_link, location
from trackstar.storage.queries import Query
from trackstar.storage.removal import remove_index
from trackstar.storage.results import read_sealed, write_sealed
from trackstar.storage.writer import changing, unread
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.index.lineage import TRAINER_STATE, step_of
from trackstar.tasks.models.checkpoint_files import (
    Checkpoint,
    adapter_files,
    model_files,
    optional_files,
    problem_of,
    read_checkpoint,
)
from trackstar.tasks.scoring.score_pass import ScoreConfig

ASKED = "asked.json"
TRAINER_NAME = r"checkpoint-\d+"
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

    @property
    def order(self) -> tuple[bool, int, str]:
        return order_of(self.step, self.name)


def order_of(step: int | None, name: str) -> tuple[bool, int, str]:
    """By step; checkpoints that state none come last, by name."""
    return step is None, step or 0, name


def find_checkpoints(directory: str) -> list[Found]:
    """Every checkpoint below a directory, in the order of training; half-written ones are marked.

    Raises:
        InputError: There is no such directory.
    """
    root = location(directory)
    if not root.is_dir():
        raise InputError(f"{directory} is no directory; give the one that training saves its checkpoints in")
    entries = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    found = [Found(path=str(entry), step=step_of(entry), missing=missing_of(entry)) for entry in entries]
    return sorted(found, key=lambda checkpoint: checkpoint.order)


def missing_of(checkpoint: UPath) -> str | None:
    """What a checkpoint lacks to be whole, judged by its content; None when it lacks nothing.

    An adapter will never be whole: nothing is waited for, and the check that follows refuses it.
    """
    if adapter_files(checkpoint):
        return None
    try:
        names = model_files(str(checkpoint))
    except InputError as error:
        return str(error)
    if re.fullmatch(TRAINER_NAME, checkpoint.name) and (checkpoint / "training_args.bin").is_file():
        names.append(TRAINER_STATE)  # the Trainer writes it last
    problems = (problem_of(checkpoint / name) for name in [*names, *optional_files(checkpoint)])
    return next((problem for problem in problems if problem), None)


def index_name(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.name}-{checkpoint.digest[:NAME_DIGITS]}"


def newest(found: Sequence[Found], keep_last: int | None) -> list[Found]:
    """The whole checkpoints that an index is kept of."""
    whole = [checkpoint for checkpoint in found if checkpoint.missing is None]
    return whole if keep_last is None else whole[-keep_last:]


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


def identify(found: Found, *, trust_remote_code: bool) -> Checkpoint:
    """The checkpoint by its content: every byte of its weights is read."""
    return read_checkpoint(found.path, trust_remote_code=trust_remote_code)
