"""What commands have in common: a flow is run once its settings are known to be right, and its result is printed."""

import json
import os
import shlex
import sys
from importlib import import_module
from typing import Any

import click

from trackstar.flows.cli.sentences import printable
from trackstar.flows.cli.stopping import stoppable
from trackstar.flows.config import FlowConfig
from trackstar.flows.places import require_prefect


def run(flow: str, config: FlowConfig, *, verbose: bool, quiet: bool, **_: bool) -> Any:
    """Run the flow of this name here and return its result.

    Nothing has been started or written where ``check`` finds that it cannot be done. Ctrl-C and SIGTERM end it.
    """
    command = shlex.join(["trackstar", *sys.argv[1:]])
    return stoppable(
        lambda: _run(flow, config, verbose=verbose, quiet=quiet), sentence=lambda: stopped(config, command)
    )


def _run(flow: str, config: FlowConfig, *, verbose: bool, quiet: bool) -> Any:
    config.check()
    require_prefect()
    if not verbose:  # what the environment says comes first
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    if quiet:
        return start(flow, config)
    from trackstar.tasks.runtime.terminal_line import showing

    with showing(flow):
        return start(flow, config)


def stopped(config: FlowConfig, command: str) -> str:
    """What is kept of a run that was stopped, and the command that goes on."""
    written = next(getattr(config, name) for name in ("indexes", "index", "out") if hasattr(config, name))
    told = f"whatever was finished is kept in {written}; the same command goes on from there: {command}"
    return printable(f"stopped; {told}")


def start(flow: str, config: FlowConfig) -> Any:
    """Run a flow with settings that are known to be right."""
    return import_module("trackstar.flows.cli.runs").recorded(
        getattr(import_module(f"trackstar.flows.{flow}"), flow), config
    )


def finish(
    kind: str,
    *result: Any,
    as_json: bool,
    quiet: bool,
    page: str = "",
    following: str = "",
    **_: bool,
) -> None:
    """Print a result, where its page is, and the command that comes next.

    Args:
        kind: Which of the summaries it is.
    """
    outcome = getattr(import_module("trackstar.flows.cli.tables"), f"{kind}_outcome")(*result)
    if as_json:
        facts = {**outcome.facts, "page": page} if page else outcome.facts
        click.echo(json.dumps(facts, indent=1, default=str))
    elif not quiet:
        if outcome.table is not None:
            import_module("rich").print(outcome.table)
        for name, value in (("Page", page or outcome.page), ("Next", following)):
            if value:
                click.echo(f"{name}: {printable(value)}")
