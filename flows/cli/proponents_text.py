"""The best proponents of a result directory's first queries as texts, which is what a person reads first."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from upath import UPath

from trackstar.flows.cli.sentences import printable
from trackstar.storage.results import read_lines

SHOWN_QUERIES = 3
SHOWN_PROPONENTS = 3
SHOWN_CHARACTERS = 300


def proponents_text(directory: UPath, methods: Sequence[str]) -> RenderableType:
    """The first queries, and the best proponents by each method.

    Args:
        directory: Where ``write_proponents`` wrote.
        methods: Those to show; a line of the file is one query by one method.
    """
    records = (record for record in read_lines(directory) if record["method"] in methods)
    shown = list(islice(records, SHOWN_QUERIES * len(methods)))
    return Group(*(part for record in shown for part in _record(record, is_first=record["method"] == methods[0])))


def _record(record: dict[str, Any], *, is_first: bool) -> Iterator[RenderableType]:
    if is_first:
        prompt, completion = record["inputs_plaintext"], record["targets_plaintext"]
        query = Text(printable(prompt + completion))
        query.stylize("bold", len(query) - len(printable(completion)))
        yield query
    yield Text(f"  by {printable(record['method'])}", style="italic")
    best = zip(record["proponents"], record["proponent_ids"], record["proponent_scores"], strict=True)
    for rank, (text, id_, score) in enumerate(islice(best, SHOWN_PROPONENTS), start=1):
        shortened = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
        yield Padding(Text(f"{rank} {printable(shortened)}"), (0, 0, 0, 2))
        yield Padding(Text(f"{score:+.3f}  {printable(id_)}", style="dim"), (0, 0, 0, 4))
