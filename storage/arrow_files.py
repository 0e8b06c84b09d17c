"""Arrow files, as ``save_to_disk`` of the library ``datasets`` leaves them, a record batch in memory at a time."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from upath import UPath

from trackstar.storage.errors import InputError

STATE, SPLITS = "state.json", "dataset_dict.json"


@contextmanager
def open_arrow(path: UPath) -> Iterator[Any]:
    """A reader of the file's record batches.

    Raises:
        InputError: pyarrow is not installed, or the file is none of Arrow's.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise InputError(
            f"{path} is an Arrow file and pyarrow is not installed; pip install 'trackstar[arrow]', or save it as "
            "Parquet"
        ) from error
    try:
        with path.open("rb") as file:
            yield pa.ipc.open_stream(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as an Arrow stream ({reason}); save it again") from error


def arrow_columns(path: UPath) -> list[str]:
    with open_arrow(path) as reader:
        return reader.schema.names


def count_arrow_rows(path: UPath) -> int:
    with open_arrow(path) as reader:
        return sum(batch.num_rows for batch in reader)


def arrow_rows(path: UPath, columns: Sequence[str], first_row: int, num_rows: int) -> Iterator[tuple[int, dict]]:
    """Rows [first_row, first_row + num_rows) with those of the columns that there are."""
    start, end_row = 0, first_row + num_rows
    with open_arrow(path) as reader:
        names = [name for name in reader.schema.names if name in columns]
        for batch in reader:
            low, high = max(first_row - start, 0), min(end_row - start, batch.num_rows)
            if low < high:
                part = batch.select(names).slice(low, high - low).to_pylist()
                yield from enumerate(part, start=start + low)
            start += batch.num_rows
            if start >= end_row:
                return


def is_stray(path: UPath) -> bool:
    """Whether an Arrow file lies in a saved dataset without being part of it: a cache of the library, say."""
    state = path.parent / STATE
    if not state.is_file():
        return False
    return path.name not in {part["filename"] for part in json.loads(state.read_bytes())["_data_files"]}


def require_one_split(directory: UPath) -> None:
    """Raise InputError for a saved dataset of several splits: what was trained on is for its user to say."""
    if (directory / SPLITS).is_file():
        splits = json.loads((directory / SPLITS).read_bytes())["splits"]
        if len(splits) > 1:
            raise InputError(
                f"{directory} has the splits {', '.join(splits)}; name the one that was trained on: "
                f"{directory / splits[0]}"
            )
