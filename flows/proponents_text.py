"""The best proponents of a result directory's first queries as texts, which is what a person reads first."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from upath import UPath

from trackstar.storage.layout import PROPONENTS_JSONL
from trackstar.tasks.asking.answer_text import plain_text

SHOWN_QUERIES = 3
SHOWN_PROPONENTS = 3
SHOWN_CHARACTERS = 300


def proponents_text(directory: UPath, methods: Sequence[str]) -> RenderableType:
    """The first queries, and the best proponents by each method.

    Args:
        directory: Where ``write_proponents`` wrote.
        methods: Those to show; a line of the file is one query by one method.
    """
    with (directory / PROPONENTS_JSONL).open("rb") as file:
        records = (record for record in map(json.loads, file) if record["method"] in methods)
        shown = list(islice(records, SHOWN_QUERIES * len(methods)))
    return Group(*(part for record in shown for part in _record(record, is_first=record["method"] == methods[0])))


def _record(record: dict[str, Any], *, is_first: bool) -> Iterator[RenderableType]:
    if is_first:
        query = Text(plain_text(record["inputs_plaintext"]))
        yield query.append(plain_text(record["targets_plaintext"]), style="bold")
    yield Text(f"  by {plain_text(record['method'])}", style="italic")
    best = zip(record["proponents"], record["proponent_ids"], record["proponent_scores"], strict=True)
    for rank, (text, id_, score) in enumerate(islice(best, SHOWN_PROPONENTS), start=1):
        shortened = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
        yield Padding(Text(f"{rank} {plain_text(shortened)}"), (0, 0, 0, 2))
        yield Padding(Text(f"{score:+.3f}  {plain_text(id_)}", style="dim"), (0, 0, 0, 4))
