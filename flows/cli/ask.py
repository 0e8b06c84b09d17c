"""``trackstar ask``: one question, answered while one looks, without Prefect and without a trace on disk."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from trackstar.flows.cli.options import DampingOption, IndexOption

GIB = 1 << 30


def ask(
    index: IndexOption,
    prompt: Annotated[str, typer.Argument(help="What the model reads.")],
    completion: Annotated[str | None, typer.Argument(help="What it says then; by default what it would say.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Ask about the completion rather than this.")] = None,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "trackstar",
    top_k: Annotated[int, typer.Option(min=0, help="Proponents and opponents of each method; 0: all.")] = 5,
    background: Annotated[str | None, typer.Option(help="Standing queries, whose R_eval is mixed in.")] = None,
    mixing_weight: Annotated[float | None, typer.Option(help="λ where there is a background.")] = None,
    damping: DampingOption = 0.1,
    dense_encoder: Annotated[str | None, typer.Option(help="Local sentence encoder, for the method dense.")] = None,
    memory_gib: Annotated[float, typer.Option(min=0, help="What may be held in memory.")] = 2.0,
    prepare: Annotated[bool, typer.Option("--prepare", help="Write what the index lacks for questions, once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """One question, answered at once: which documents carry what the model says after a prompt."""
    import trackstar

    opened = trackstar.open(
        index, damping=damping, dense_encoder=dense_encoder, memory_bytes=int(memory_gib * GIB), prepare=prepare
    )
    answer = opened.ask(
        prompt,
        completion,
        contrast=contrast,
        methods=[name.strip() for name in methods.split(",")],
        top_k=top_k,
        background=background,
        mixing_weight=mixing_weight,
    )
    _print(answer, as_json=as_json)


def _print(answer: Any, *, as_json: bool) -> None:
    if as_json:
        # ASCII: whatever a corpus holds, no terminal obeys it
        sys.stdout.write(json.dumps(answer.to_dict(), allow_nan=False) + "\n")
    else:
        Console(highlight=False).print(answer)
