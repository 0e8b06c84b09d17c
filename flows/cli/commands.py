"""``trackstar``: each command runs one flow with the parameters the flow's deployment takes.

Exit codes: 0 done, 2 the input or the arguments are wrong (one line says which and what to do), 1 anything else.
torch and Prefect are loaded by what a command runs (``commands.run``): help and wrong values are answered at once.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from shlex import quote
from typing import Any

import click

from trackstar.flows.cli.help import CONTEXT, Command, Commands, GroupedOption
from trackstar.flows.cli.running import finish, run
from trackstar.flows.cli.sentences import explain, printable
from trackstar.flows.config import (
    AskCommandConfig,
    AttributeConfig,
    CompareConfig,
    DemoConfig,
    IndexConfig,
    MnistConfig,
    ReindexConfig,
    SelfcheckConfig,
    ServeCommandConfig,
    WithdrawConfig,
    asked_index,
)
from trackstar.storage.errors import PartlyDoneError


@click.group(name="trackstar", cls=Commands, context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(version("trackstar"), message="%(prog)s %(version)s")
def app() -> None:
    """Which training examples most influenced this prediction?"""


def command(name: str, *params: click.Parameter, config: Any = None, example: str) -> Any:
    """Register a function as a command of this name."""
    return lambda function: app.add_command(Command(name, function, config=config, example=example, params=params))


@command(
    "index",
    GroupedOption(
        "--dry-run", is_flag=True, group="Where it runs", help="Predict time, disk and memory; write nothing."
    ),
    config=IndexConfig,
    example="trackstar index --checkpoint checkpoint-500 --corpus corpus/*.jsonl --index index",
)
def index(config: IndexConfig, dry_run: bool, **output: bool) -> None:
    """Checkpoint and corpus to an index: the projected gradient of every document, V and R_train."""
    if dry_run:
        config.check()
        budget = import_module("trackstar.tasks.index.budget")
        asked = {**config.model_dump(), "gradient": config.sized_gradient(config.checkpoint)}
        finish("budget", budget.predict(budget.BudgetRequest.model_validate(asked)), **output)
        return
    following = f"trackstar attribute --index {quote(config.index)} --queries FILE --out DIR"
    finish("index", run("index", config, **output), following=following, **output)


@command(
    "attribute",
    config=AttributeConfig,
    example="trackstar attribute --index index --queries queries.jsonl --out results",
)
def attribute(config: AttributeConfig, **output: bool) -> None:
    """Queries to proponents and opponents: proponents.parquet, proponents.jsonl and run.json."""
    record = run("attribute", config, **output)
    following = f"trackstar show {quote(config.out)}"
    finish("attribution", record, config.out, following=following, **output)


@command(
    "compare",
    config=CompareConfig,
    example="trackstar compare --index index --queries queries.jsonl --out results --methods trackstar,bm25",
)
def compare(config: CompareConfig, **output: bool) -> None:
    """The same queries through every method: metrics.json and report.html."""
    following = f"trackstar show {quote(config.out)}"
    page = f"{config.out}/report.html"
    result = run("compare", config, **output), config.out, config.methods
    finish("comparison", *result, page=page, following=following, **output)


@command(
    "ask",
    click.Argument(["prompt"]),
    click.Argument(["completion"], required=False),
    config=AskCommandConfig,
    example="trackstar ask --index index 'The capital of France is' ' Paris'",
)
def ask(config: AskCommandConfig, prompt: str, completion: str | None, quiet: bool, **output: bool) -> None:
    """One question, answered at once: which documents carry what the model says after a prompt."""
    answer = import_module("trackstar.flows.cli.ask").answered(config, prompt, completion, quiet=quiet)
    finish("answer", answer, quiet=quiet, **output)


@command(
    "serve",
    click.Argument(["indexes"], nargs=-1, required=True, metavar="INDEX..."),
    config=ServeCommandConfig,
    example="trackstar serve index",
)
def serve(config: ServeCommandConfig, indexes: tuple[str, ...], quiet: bool, as_json: bool, **_: bool) -> None:
    """A page to ask finished indexes on, and the API behind it: POST /api/ask."""
    import_module("trackstar.flows.cli.serve").serve(config, indexes, quiet=quiet, as_json=as_json)


@command("demo", config=DemoConfig, example="trackstar demo --out demo")
def demo(config: DemoConfig, **output: bool) -> None:
    """Train a small model on facts, trace what it has learnt, and compare with BM25: the whole pipeline."""
    following = f"trackstar show {quote(config.out)}/index"
    page = f"{config.out}/results/report.html"
    finish("metrics", run("demo", config, **output), page=page, following=following, **output)


@command(
    "reindex",
    config=ReindexConfig,
    example="trackstar reindex --checkpoints run --corpus corpus --indexes indexes --queries queries.jsonl",
)
def reindex(config: ReindexConfig, **output: bool) -> None:
    """Index the checkpoints that have no index yet, ask the standing queries, report what moved: drift.html."""
    try:
        done = run("reindex", config, **output)
    except PartlyDoneError as error:
        finish("reindex", error.done, config, **output)
        raise
    finish("reindex", done, config, **output)


@command(
    "promote",
    click.Argument(["indexes"]),
    click.Argument(["name"]),
    example="trackstar promote indexes step-1000-1f2e3d4c",
)
def promote(indexes: str, name: str, **output: bool) -> None:
    """Let this one of the indexes serve: whoever asks the directory then asks it."""
    finish("serving", import_module("trackstar.flows.promote").promote_by_hand(indexes, name), **output)


@command(
    "lineage",
    click.Argument(["index"]),
    click.Argument(["document"]),
    example="trackstar lineage index doc-17",
)
def lineage(index: str, document: str, **output: bool) -> None:
    """Where a document comes from (file, row, checkpoint, step, code), and which answers beside the index show it."""
    opened = import_module("trackstar.tasks.index.contents").read_index(asked_index(index))
    found = import_module("trackstar.tasks.reindex.lineage").lineage(opened, document)
    finish("lineage", found, **output)


@command("rollback", click.Argument(["indexes"]), example="trackstar rollback indexes")
def rollback(indexes: str, **output: bool) -> None:
    """Let the index serve that did before; `reindex` does not promote this one again."""
    finish("serving", import_module("trackstar.flows.promote").rollback(indexes), **output)


@command(
    "withdraw",
    config=WithdrawConfig,
    example="trackstar withdraw --index index --ids doc-17 doc-18 --reason 'asked to be forgotten'",
)
def withdraw(config: WithdrawConfig, **output: bool) -> None:
    """Leave documents out of the candidates and of R_train, of one index or of every one; they stay on disk."""
    following = f"trackstar show {quote(config.index)}"
    kind = "index" if config.is_of_one else "withdrawn"
    finish(kind, run("withdraw", config, **output), following=following, **output)


@command("mnist", config=MnistConfig, example="trackstar mnist --out study --data digits")
def mnist(config: MnistConfig, **output: bool) -> None:
    """The equation taken apart, term by term, on handwritten digits: one page that explains the method."""
    finish("nothing", None, page=run("mnist", config, **output), **output)


@command("show", click.Argument(["directory"]), example="trackstar show index")
def show(directory: str, **output: bool) -> None:
    """Explain an index or a directory of results."""
    finish("directory", directory, **output)


@command(
    "verify",
    click.Argument(["directory"]),
    GroupedOption("--repair", is_flag=True, group="Options", help="Remove what is damaged, for `index` to rebuild."),
    example="trackstar verify index",
)
def verify(directory: str, repair: bool, **output: bool) -> None:
    """Compare every byte of an index with the digests that were taken when it was written."""
    report = import_module("trackstar.flows.cli.tables").verify_index(directory, repair=repair)
    finish("verification", report, **output)
    if not report.is_sound:
        raise click.exceptions.Exit(1)


@command(
    "prune",
    click.Argument(["directory"]),
    GroupedOption(
        "--all", "shared", is_flag=True, group="Options",
        help="Also what all query sets share: R_train's factors and norms, the stores of other methods.",
    ),
    GroupedOption("--dry-run", is_flag=True, group="Options", help="Only say what that would free."),
    example="trackstar prune index --dry-run",
)  # fmt: skip
def prune(directory: str, shared: bool, dry_run: bool, **output: bool) -> None:
    """Remove what queries left in an index; asked again, it is computed again. Results elsewhere stay."""
    pruning, layout = (import_module(f"trackstar.storage.{name}") for name in ("pruning", "layout"))
    freed = pruning.prune(layout.location(directory), shared=shared, dry_run=dry_run)
    finish("pruning", freed, directory, dry_run, **output)


@command(
    "selfcheck",
    config=SelfcheckConfig,
    example="trackstar selfcheck --checkpoint checkpoint-500",
)
def selfcheck(config: SelfcheckConfig, **output: bool) -> None:
    """Measure whether a checkpoint is causal, exact, and independent of batches, padding and threads."""
    config.check()
    result = import_module("trackstar.tasks.models.selfcheck").selfcheck(config.checkpoint, config.model)
    finish("selfcheck", result, **output)
    if not result.holds:
        raise click.exceptions.Exit(1)


@command(
    "completion",
    click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"])),
    example='eval "$(trackstar completion bash)"',
)
def completion(shell: str, **output: bool) -> None:
    """Print what a shell runs to complete commands, options and values."""
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(app, {}, "trackstar", "_TRACKSTAR_COMPLETE").source())


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    sys.exit(respond(sys.argv[1:]))


def respond(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        return app.main(arguments, prog_name="trackstar", standalone_mode=False) or 0
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
        return 1
    except click.Abort:
        click.echo("stopped", err=True)
        return 130
    except Exception as error:
        named = app.commands.get(next((word for word in arguments if not word.startswith("-")), ""))
        message, code = explain(error, getattr(named, "config", None))
        if code is None:
            raise
        click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(message)}", err=True)
        return code


if __name__ == "__main__":
    main()
