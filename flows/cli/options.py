"""The options that several commands share, and what the shell and the commands say of them in other words."""

from typing import Annotated, Any

import typer

SPREAD_OPTIONS = ("--corpus", "--ids", "--also-checkpoints")  # that take several words

IndexOption = Annotated[str, typer.Option("--index", help="Index directory, or its object store URL.")]
QueriesOption = Annotated[str, typer.Option("--queries", help='JSON Lines: {"id", "prompt", "completion"}.')]
OutOption = Annotated[str, typer.Option("--out", help="Directory for the results.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Proponents and opponents of a query; 0: all.")]
MixingWeightOption = Annotated[str, typer.Option("--mixing-weight", help="λ, at least 0 and less than 1, or auto.")]
WhiteningOption = Annotated[str, typer.Option("--whitening", help="mixed, train or none.")]
DampingOption = Annotated[
    float | None, typer.Option("--damping", min=0, help="Relative to R_train's mean eigenvalue; by default 0.1.")
]
UnitNormOption = Annotated[bool, typer.Option("--unit-norm/--no-unit-norm", help="Cosines, or plain products.")]
ShardsOnOption = Annotated[str, typer.Option("--shards-on", help="local, processes, or a Dask scheduler's address.")]
DaskOption = Annotated[str, typer.Option("--dask", help="local, processes, or a scheduler's address.")]


def score_settings(
    top_k: int, mixing_weight: str, whitening: str, damping: float | None, unit_norm: bool
) -> dict[str, Any]:
    """The options of a command as the fields of ``ScoreConfig``."""
    return {
        "top_k": top_k,
        "mixing_weight": mixing_weight,
        "whitening": whitening,
        "damping": damping,
        "unit_norm": unit_norm,
    }


def spread(arguments: list[str]) -> list[str]:
    """``--corpus A B`` as ``--corpus A --corpus B``: the shell expands ``*.jsonl`` into several words."""
    words: list[str] = []
    option = ""
    for argument in arguments:
        if argument in SPREAD_OPTIONS:
            option = argument
        elif argument.startswith("-"):
            option = ""
            words.append(argument)
        elif option:
            words += [option, argument]
        else:
            words.append(argument)
    return words
