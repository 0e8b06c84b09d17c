"""``trackstar``: each command runs one flow with the parameters the flow's deployment takes.

Exit codes: 0 done, 2 the input or the arguments are wrong (one line says which and what to do), 1 anything else.
torch and Prefect are imported by the commands that need them, so that help answers at once.
"""

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from trackstar.flows.cli.ask import ask
from trackstar.flows.cli.options import (
    DampingOption,
    DaskOption,
    IndexOption,
    MixingWeightOption,
    OutOption,
    QueriesOption,
    ShardsOnOption,
    TopKOption,
    UnitNormOption,
    WhiteningOption,
    score_settings,
    spread,
)

app = typer.Typer(
    name="trackstar",
    help="Which training examples most influenced this prediction?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(ask)
console = Console()

# Prefect without a server: generous for a busy machine, silent towards the network.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
}


@app.command()
def index(
    checkpoint: Annotated[str, typer.Option(help="Directory of a Hugging Face checkpoint.")],
    index: IndexOption,
    corpus: Annotated[list[str], typer.Option(help="Files or directories, one or more.")],
    second_moment: Annotated[str, typer.Option(help="auto, factored, full, estimated or none.")] = "auto",
    projection: Annotated[str, typer.Option(help="two_sided or none.")] = "two_sided",
    projection_dim: Annotated[int, typer.Option(min=1, help="k: a block has k² dimensions.")] = 64,
    num_layer_blocks: Annotated[int, typer.Option(min=1, help="Groups of layers, two blocks each.")] = 8,
    pooling: Annotated[str, typer.Option(help="sum or concatenate a block's matrices.")] = "sum",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the projections.")] = 0,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    id_column: Annotated[str, typer.Option(help="Column with the id.")] = "id",
    extra_columns: Annotated[str, typer.Option(help="Comma-separated columns to keep, to group influence by.")] = "",
    shard_size: Annotated[int, typer.Option(min=1, help="Documents of a task run.")] = 2048,
    token_budget: Annotated[int, typer.Option(min=16, help="Tokens of a batch.")] = 4096,
    context_tokens: Annotated[int | None, typer.Option(min=2, help="Longest window; default: the model's.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "float32",
    device: Annotated[str, typer.Option(help="Torch device, or auto.")] = "auto",
    store_dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    curvature_sample: Annotated[int | None, typer.Option(min=1, help="R_train from a sample of so many.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")] = False,
    shards_on: ShardsOnOption = "local",
    dask: DaskOption = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict time, disk and memory, and write nothing.")
    ] = False,
) -> None:
    """Checkpoint and corpus to an index: the projected gradient of every document, V and R_train."""
    _prepare()
    from trackstar.flows.config import IndexConfig

    config = IndexConfig.model_validate(
        {
            "checkpoint": checkpoint,
            "index": index,
            "corpus": {
                "paths": corpus,
                "text_column": text_column,
                "id_column": id_column,
                "extra_columns": [name.strip() for name in extra_columns.split(",") if name.strip()],
                "shard_size": shard_size,
            },
            "model": {
                "dtype": dtype,
                "device": device,
                "context_tokens": context_tokens,
                "token_budget": token_budget,
                "trust_remote_code": trust_remote_code,
            },
            "gradient": {
                "projection": projection,
                "projection_dim": projection_dim,
                "num_layer_blocks": num_layer_blocks,
                "pooling": pooling,
                "seed": seed,
            },
            "second_moment": {"mode": second_moment, "seed": seed},
            "store_dtype": store_dtype,
            "curvature": {"sample": curvature_sample, "seed": seed},
            "shards_on": shards_on,
            "dask": dask,
        }
    )
    if dry_run:
        _predict(config)
        return
    from trackstar.flows.cli.tables import index_table
    from trackstar.flows.index import index as flow

    console.print(index_table(_run(flow, config)))


@app.command()
def attribute(
    index: IndexOption,
    queries: QueriesOption,
    out: OutOption,
    top_k: TopKOption = 10,
    mixing_weight: MixingWeightOption = "auto",
    mixing_weights: Annotated[
        str, typer.Option(help="Comma-separated further λ in the same pass, as trackstar@λ.")
    ] = "",
    whitening: WhiteningOption = "mixed",
    damping: DampingOption = 0.1,
    unit_norm: UnitNormOption = True,
    dask: DaskOption = "local",
) -> None:
    """Queries to proponents and opponents: proponents.parquet, proponents.jsonl and run.json."""
    _prepare()
    from trackstar.flows.attribute import attribute as flow
    from trackstar.flows.cli.tables import attribution_table
    from trackstar.flows.config import AttributeConfig

    score = score_settings(top_k, mixing_weight, whitening, damping, unit_norm)
    score["mixing_weights"] = mixing_weights.split(",") if mixing_weights else []
    config = AttributeConfig.model_validate(
        {"index": index, "queries": queries, "out": out, "score": score, "dask": dask}
    )
    _run(flow, config)
    console.print(attribution_table(config))


@app.command()
def compare(
    index: IndexOption,
    queries: QueriesOption,
    out: OutOption,
    methods: Annotated[str, typer.Option(help="Comma-separated; differences are against the first.")] = "",
    top_k: TopKOption = 100,
    mixing_weight: MixingWeightOption = "auto",
    whitening: WhiteningOption = "mixed",
    damping: DampingOption = 0.1,
    unit_norm: UnitNormOption = True,
    tail_patch: Annotated[int, typer.Option(min=0, help="Proponents to train on, per query and method.")] = 10,
    tail_patch_learning_rate: Annotated[float, typer.Option(help="Of that one training step.")] = 3e-4,
    token_influence: Annotated[int, typer.Option(min=0, help="Proponents per query to read token by token.")] = 5,
    also_checkpoints: Annotated[
        list[str] | None, typer.Option(help="Earlier ones, one or more; grad_dot and grad_cosine sum over them.")
    ] = None,
    dense_encoder: Annotated[str | None, typer.Option(help="Local sentence encoder, for the method dense.")] = None,
    entailment_model: Annotated[
        str | None,
        typer.Option(help="Local one, to judge evidence for queries with no relevant_ids and no aliases."),
    ] = None,
    entailment_threshold: Annotated[float, typer.Option(help="How sure it must be that a document is evidence.")] = 0.5,
    entailment_depth: Annotated[int, typer.Option(min=1, help="Documents it reads of each query and method.")] = 10,
    influence_damping: Annotated[float, typer.Option(help="Relative to the Hessian's mean eigenvalue.")] = 0.1,
    dask: DaskOption = "local",
) -> None:
    """The same queries through every method: metrics.json and report.html."""
    _prepare()
    from trackstar.flows.cli.tables import metrics_table
    from trackstar.flows.compare import compare as flow
    from trackstar.flows.config import CompareConfig
    from trackstar.flows.proponents_text import proponents_text
    from trackstar.storage.layout import location

    values: dict[str, Any] = {
        "index": index,
        "queries": queries,
        "out": out,
        "score": score_settings(top_k, mixing_weight, whitening, damping, unit_norm),
        "tail_patch": {"num_proponents": tail_patch, "learning_rate": tail_patch_learning_rate},
        "token_influence": {"num_proponents": token_influence},
        "also_checkpoints": also_checkpoints or [],
        "dense_encoder": dense_encoder,
        "entailment_model": entailment_model,
        "entailment": {"threshold": entailment_threshold, "depth": entailment_depth},
        "influence": {"damping": influence_damping},
        "dask": dask,
    }
    if methods:
        values["methods"] = [name.strip() for name in methods.split(",")]
    config = CompareConfig.model_validate(values)
    metrics = _run(flow, config)
    console.print(proponents_text(location(config.out), config.methods))
    console.print(metrics_table(metrics))
    console.print(f"Report: {config.out}/report.html", soft_wrap=True)


@app.command()
def demo(out: OutOption = "demo") -> None:
    """Train a small model on facts, trace what it has learnt, and compare with BM25: the whole pipeline."""
    _prepare()
    from trackstar.flows.cli.tables import metrics_table
    from trackstar.flows.demo import DemoConfig
    from trackstar.flows.demo import demo as flow

    config = DemoConfig.model_validate({"out": out})
    console.print(metrics_table(_run(flow, config)))
    console.print(f"Report: {config.out}/results/report.html", soft_wrap=True)


@app.command()
def reindex(
    checkpoints: Annotated[str, typer.Option(help="Directory that training saves its checkpoints in.")],
    corpus: Annotated[list[str], typer.Option(help="Files or directories, one or more.")],
    indexes: Annotated[str, typer.Option(help="Directory of an index and results per checkpoint.")],
    queries: Annotated[str | None, typer.Option(help="Standing queries, asked of every checkpoint.")] = None,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Only the last N checkpoints keep an index.")] = None,
    projection_dim: Annotated[int, typer.Option(min=1, help="k: a block has k² dimensions.")] = 64,
    shards_on: ShardsOnOption = "local",
    dask: DaskOption = "local",
) -> None:
    """Index the checkpoints that have no index yet, ask the standing queries, report what moved: drift.html."""
    _prepare()
    from trackstar.flows.cli.tables import facts_table
    from trackstar.flows.config import ReindexConfig
    from trackstar.flows.reindex import reindex as flow

    config = ReindexConfig.model_validate(
        {
            "checkpoints": checkpoints,
            "indexes": indexes,
            "corpus": {"paths": corpus},
            "queries": queries,
            "keep_last": keep_last,
            "gradient": {"projection_dim": projection_dim},
            "shards_on": shards_on,
            "dask": dask,
        }
    )
    done = _run(flow, config)
    outcome = "nothing to do" if done.is_idle else "done"
    facts = [(name, ", ".join(value) or "none") for name, value in done]
    console.print(facts_table(f"Reindex {config.checkpoints}: {outcome}", facts))


@app.command()
def withdraw(
    index: IndexOption,
    ids: Annotated[list[str], typer.Option(help="Ids of documents, or files with one id a line.")],
    reason: Annotated[str, typer.Option(help="Recorded with the ids.")] = "",
    dask: DaskOption = "local",
) -> None:
    """Leave documents out of the candidates and of R_train; they stay on disk, and stay withdrawn."""
    _prepare()
    from trackstar.flows.cli.tables import index_table
    from trackstar.flows.config import WithdrawConfig
    from trackstar.flows.withdraw import withdraw as flow

    config = WithdrawConfig.model_validate({"index": index, "ids": ids, "reason": reason, "dask": dask})
    console.print(index_table(_run(flow, config)))


@app.command()
def mnist(
    out: OutOption,
    data: Annotated[str, typer.Option(help="digits, mnist, or an .npz file with X and y.")] = "digits",
) -> None:
    """The equation taken apart, term by term, on handwritten digits: one page that explains the method."""
    _prepare()
    from trackstar.flows.mnist import MnistConfig
    from trackstar.flows.mnist import mnist as flow

    page = _run(flow, MnistConfig.model_validate({"out": out, "data": data}))
    console.print(f"Page: {page}", soft_wrap=True)


@app.command()
def show(directory: Annotated[str, typer.Argument(help="An index, or a directory of results.")]) -> None:
    """Explain an index or a result directory."""
    from trackstar.flows.cli.tables import describe

    console.print(describe(directory))


@app.command()
def verify(
    directory: Annotated[str, typer.Argument(help="An index.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that indexing rebuilds it.")
    ] = False,
) -> None:
    """Compare every byte of an index with the digests that were taken when it was written."""
    from trackstar.flows.cli.tables import verify_index

    report, is_sound = verify_index(directory, repair=repair)
    console.print(report)
    if not is_sound and not repair:
        raise typer.Exit(1)


@app.command()
def selfcheck(
    checkpoint: Annotated[str, typer.Option(help="Directory of a Hugging Face checkpoint.")],
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "float32",
    device: Annotated[str, typer.Option(help="Torch device, or auto.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")] = False,
) -> None:
    """Measure whether a checkpoint is causal, exact, and independent of batches, padding and threads."""
    from trackstar.tasks.models.checkpoint import ModelConfig
    from trackstar.tasks.models.selfcheck import selfcheck as measure

    config = ModelConfig.model_validate({"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code})
    result = measure(checkpoint, config)
    console.print(f"attention: {result.attention}")
    for check in result.checks:
        verdict = "ok" if check.holds else "BROKEN"
        console.print(
            f"{verdict:<7}{check.name}: changes by {check.change:.1e}, limit {check.limit:.0e}", soft_wrap=True
        )
    if not result.holds:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    try:
        app(args=spread(sys.argv[1:]))
    except Exception as error:
        message, code = _explain(error)
        if code is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str, int | None]:
    """The line a person needs and the exit code; no code for an error nobody foresaw."""
    from pydantic import ValidationError
    from rich.markup import escape

    from trackstar.storage.errors import InputError, MissingError, StorageError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the settings"
        return escape(f"{field} is {first['input']!r}: {first['msg']}"), 2
    if isinstance(error, InputError | MissingError):
        return escape(str(error)), 2
    if isinstance(error, StorageError):
        return escape(str(error)), 1
    if isinstance(error, OSError) and error.strerror:  # a full disk, a directory that may not be written to
        return escape(f"{error.filename or 'the system'}: {error.strerror}"), 1
    return "", None


def _prepare() -> None:
    """Defaults for running without a server; what the environment says comes first."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def _predict(config: Any) -> None:
    from trackstar.flows.cli.tables import budget_table
    from trackstar.tasks.index.budget import BudgetRequest, predict

    config.check()
    console.print(budget_table(predict(BudgetRequest.model_validate(config.model_dump()))))


def _run(flow: Any, config: Any) -> Any:
    """Run a flow here; without a server, wait until its record is complete, since the server ends with this process."""
    from trackstar.flows.cli.runs import recorded

    return recorded(flow, config)


if __name__ == "__main__":
    main()
