"""What people type that is wrong: a name, the command line, and words of the sentence that answers it.

Add a row to ``BAD_INPUTS`` for every case that comes up. ``{word}`` stands for a file or directory that ``make_files``
makes; ``OPTIONS`` derives the rows about numbers and choices from the settings, so that new options are covered.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.tiny import QUERIES, TEXTS
from trackstar.flows.cli.commands import app
from trackstar.flows.cli.options import Setting, settings_of
from trackstar.storage.index_file import index_bytes
from trackstar.storage.layout import INDEX
from trackstar.storage.manifest import Artifact
from trackstar.tasks.index.index_file import Index
from trackstar.tasks.index.settings import CorpusConfig
from trackstar.tasks.models.checkpoint_files import Checkpoint
from trackstar.tasks.models.settings import EngineSpec, GradientConfig, ModelConfig


class BadInput(NamedTuple):
    """A wrong command line.

    Attributes:
        words: All are in the one sentence on standard error.
    """

    name: str
    arguments: str
    words: tuple[str, ...]


INDEX_COMMAND = "index --checkpoint {checkpoint} --corpus {corpus} --index {new}"
DIGITS = "0" * 16
ATTRIBUTE = "attribute --index {index} --queries {queries} --out {new}"
COMPARE = "compare --index {index} --queries {queries} --out {new}"
REINDEX = "reindex --checkpoints {checkpoints} --corpus {corpus} --indexes {new}"
WITHDRAW = "withdraw --index {index} --ids d1"
VALID = {
    "index": INDEX_COMMAND,
    "attribute": ATTRIBUTE,
    "compare": COMPARE,
    "reindex": REINDEX,
    "withdraw": WITHDRAW,
    "demo": "demo --out {new}",
    "mnist": "mnist --out {new}",
    "selfcheck": "selfcheck --checkpoint {checkpoint}",
    "serve": "serve {index}",
}


def _of_checkpoints() -> Iterator[BadInput]:
    yield BadInput("no checkpoint", "index --checkpoint {absent} --corpus {corpus} --index {new}", ("does not exist",))
    for name, words in {
        "file": ("--checkpoint", "is a file"),
        "empty_directory": ("holds no config.json",),
        "no_weights": ("holds no weights",),
        "half_weights": ("model.safetensors is half written",),
        "half_header": ("model.safetensors is half written",),
        "lost_shard": ("model-00002-of-00002.safetensors",),
        "bad_bin": ("pytorch_model.bin is half written",),
        "config_no_json": ("config.json is half written",),
        "config_a_list": ("config.json holds list",),
        "config_no_type": ("names no model_type",),
        "encoder_decoder": ("encoder-decoder",),
        "no_tokenizer": ("holds no tokenizer",),
        "tokenizer_no_json": ("tokenizer.json is half written",),
        "half_optimizer": ("optimizer.pt is half written",),
    }.items():
        for command in ("index --checkpoint {%s} --corpus {corpus} --index {new}", "selfcheck --checkpoint {%s}"):
            yield BadInput(f"{name} as checkpoint of {command.split()[0]}", command % name, words)


def _of_corpora() -> Iterator[BadInput]:
    for name, words in {
        "absent": ("does not exist",),
        "text_file": ("is not a corpus file",),
        "empty_directory": ("holds no corpus file",),
        "empty_jsonl": ("no usable document",),
        "broken_json": ("no usable document", "row 0"),
        "no_text": ("has no column 'text' but 'id', 'body'", "--text-column"),
        "number_text": ("no usable document",),
        "blank_text": ("no usable document", "empty text"),
        "not_utf8_corpus": ("no usable document",),
        "no_gzip": ("is damaged, cut short or not what its suffix says",),
        "no_zstd": ("is damaged, cut short or not what its suffix says",),
        "no_parquet": ("cannot be read as Parquet",),
        "parquet_numbers": ("expected String", "--text-column"),
        "parquet_no_text": ("has no column 'text'", "--text-column"),
    }.items():
        for command in (
            "index --checkpoint {checkpoint} --corpus {%s} --index {new}",
            "reindex --checkpoints {checkpoints} --corpus {%s} --indexes {new}",
        ):
            yield BadInput(f"{name} as corpus of {command.split()[0]}", command % name, words)
    yield BadInput("column that is not there", f"{INDEX_COMMAND} --text-column body", ("has no column 'body'",))
    yield BadInput("extra column of ours", f"{INDEX_COMMAND} --extra-columns text", ("--extra-columns", "['text']"))
    yield BadInput("extra column twice", f"{INDEX_COMMAND} --extra-columns a,a", ("--extra-columns", "there already"))
    yield BadInput(
        "one file twice", "index --checkpoint {checkpoint} --corpus {corpus} {corpus} --index {new}", ("same file",)
    )


def _of_queries() -> Iterator[BadInput]:
    for name, words in {
        "absent": ("--queries", "does not exist"),
        "empty_directory": ("--queries", "is a directory"),
        "empty_jsonl": ("no query in the file",),
        "broken_json": ("line 1",),
        "query_no_completion": ("line 1", "'completion' is missing"),
        "query_blank": ("line 1", "'completion'"),
        "query_number": ("line 1", "'prompt' is an integer"),
        "query_twice": ("line 2", "already on line 1"),
        "query_relevant_text": ("line 1", "'relevant_ids'"),
        "not_utf8_corpus": ("line 1",),
        "no_gzip": ("is damaged, cut short",),
    }.items():
        for command in ("attribute", "compare"):
            yield BadInput(
                f"{name} as queries of {command}",
                f"{command} --index {{index}} --queries {{{name}}} --out {{new}}",
                words,
            )
        yield BadInput(f"{name} as queries of reindex", f"{REINDEX} --queries {{{name}}}", words)
    yield BadInput("no queries at all", "attribute --index {index} --out {new}", ("--queries", "--completion"))
    yield BadInput("a prompt alone", "attribute --index {index} --out {new} --prompt x", ("--completion",))
    yield BadInput("both kinds of queries", f"{ATTRIBUTE} --completion x", ("--queries", "--completion"))


def _of_indexes() -> Iterator[BadInput]:
    for name in ("absent", "empty_directory", "file", "checkpoint"):
        for command in ("attribute", "compare"):
            arguments = f"{command} --index {{{name}}} --queries {{queries}} --out {{new}}"
            yield BadInput(f"{name} as index of {command}", arguments, ("holds no finished index", "trackstar index"))
        yield BadInput(f"{name} as index of withdraw", f"withdraw --index {{{name}}} --ids d1", ("no finished index",))
        yield BadInput(f"show {name}", f"show {{{name}}}", ("neither a finished index nor a result directory",))
    yield BadInput("verify a file", "verify {file}", ("is no directory",))
    yield BadInput("prune a file", "prune {file}", ("is no directory",))
    yield BadInput("prune no index", "prune {empty_directory}", ("is no index",))
    yield BadInput("promote a path", "promote {empty_directory} ../index", ("names no index",))
    yield BadInput("promote what is not there", "promote {empty_directory} step-1", ("holds no finished index",))
    yield BadInput("roll back from nothing", "rollback {empty_directory}", ("no index that served before",))
    yield BadInput("lineage of no index", "lineage {empty_directory} d1", ("holds no finished index",))
    yield BadInput("verify what is not there", "verify {absent}", ("is no directory",))
    yield BadInput("no R_train", f"{ATTRIBUTE} --index {{no_r_train}}", ("no R_train", "--whitening none"))
    yield BadInput("ids that are not UTF-8", "withdraw --index {index} --ids-file {not_utf8}", ("UTF-8",))
    yield BadInput("no ids in a file", "withdraw --index {index} --ids-file {empty_jsonl}", ("no id",))
    yield BadInput(
        "other settings than before",
        "index --checkpoint {checkpoint} --corpus {corpus} --index {index} --projection-dim 5",
        ("was built with gradient.projection_dim 4",),
    )


def _of_places() -> Iterator[BadInput]:
    for name, words in {
        "file": ("is a file; give a directory",),
        "below_file": ("is a file; give a directory",),
    }.items():
        for command, option in (("index", "--index"), ("attribute", "--out"), ("compare", "--out"), ("demo", "--out"),
                                ("mnist", "--out"), ("reindex", "--indexes")):  # fmt: skip
            yield BadInput(
                f"{name} as {option} of {command}", f"{VALID[command]} {option} {{{name}}}", (option, *words)
            )
    for option, command in (("--index", "index"), ("--out", "attribute"), ("--checkpoint", "selfcheck")):
        yield BadInput(
            f"unknown scheme as {option}", f"{VALID[command]} {option} foo://x", (option, "cannot be opened")
        )
    yield BadInput(
        "unknown scheme as corpus",
        "index --checkpoint {checkpoint} --corpus foo://x --index {new}",
        ("cannot be opened",),
    )
    yield BadInput("no credentials", f"{INDEX_COMMAND} --index s3://bucket/x", ("needs AWS credentials",))
    yield BadInput("checkpoints that are not there", f"{REINDEX} --checkpoints {{absent}}", ("does not exist",))
    yield BadInput("checkpoints in a file", f"{REINDEX} --checkpoints {{file}}", ("is a file",))


def _of_machines() -> Iterator[BadInput]:
    for command in ("index", "reindex", "selfcheck"):
        yield BadInput(f"no such device for {command}", f"{VALID[command]} --device cuda:7", ("--device is cuda:7",))
        yield BadInput(
            f"no device at all for {command}", f"{VALID[command]} --device gpu", ("--device is 'gpu'", "cuda")
        )
        yield BadInput(f"meta for {command}", f"{VALID[command]} --device meta", ("--device is 'meta'",))
    for option, command in (
        ("--dask", "attribute"),
        ("--dask", "index"),
        ("--shards-on", "index"),
        ("--dask", "withdraw"),
    ):
        yield BadInput(f"{option} lokal of {command}", f"{VALID[command]} {option} lokal", (option, "expected local"))
        address = "127.0.0.1:1"
        words = (f"{option} is {address}", "no Dask scheduler answers")
        yield BadInput(f"{option} nowhere of {command}", f"{VALID[command]} {option} {address}", words)


def _of_methods() -> Iterator[BadInput]:
    for arguments, words in {
        "--methods bm52": ("'bm52'", "did you mean bm25?"),
        "--methods trackstar,trackstar": ("named twice",),
        "--methods dense": ("--dense-encoder",),
        "--methods ,": ("--methods",),
        "--dense-encoder {checkpoint}": ("--dense-encoder",),
        "--also-checkpoints {checkpoint}": ("--also-checkpoints",),
        "--methods grad_dot --also-checkpoints {absent}": ("--also-checkpoints", "does not exist"),
        "--methods dense --dense-encoder {absent}": ("--dense-encoder", "does not exist"),
        "--methods dense --dense-encoder {empty_directory}": ("holds no config.json",),
        "--entailment-model {absent}": ("--entailment-model", "does not exist"),
        "--entailment-model {checkpoint}": ("every query has relevant_ids or aliases",),
        "--influence-dtype float32 --influence-tolerance 1e-6": ("finer than float32",),
    }.items():
        yield BadInput(f"compare {arguments}", f"{COMPARE} {arguments}", words)
    yield BadInput("compare two indexes", f"{COMPARE} --index {{index}}", ("a comparison is of one index",))
    yield BadInput(
        "no indexes in a directory",
        "attribute --all-checkpoints {empty_directory} --queries {queries} --out {new}",
        ("holds no finished index",),
    )
    yield BadInput(
        "index and all checkpoints", f"{ATTRIBUTE} --all-checkpoints {{absent}}", ("--index is", "give one of them")
    )
    yield BadInput("compare reranked", f"{COMPARE} --rerank 200", ("--rerank is 200", "trackstar attribute"))
    yield BadInput("compare shrunk scores", f"{COMPARE} --shrink 2", ("--shrink is 2", "trackstar attribute"))
    for arguments, words in {
        "--mixing-weight 1": ("less than 1",),
        "--mixing-weight -0.1": ("at least 0",),
        "--mixing-weight abc": ("--mixing-weight is 'abc', expected a number or auto",),
        "--mixing-weights 0.1,0.1": ("name one twice",),
        "--mixing-weights 0.1,1.5": ("less than 1",),
        "--mixing-weights 0.1 --whitening train": ("--whitening mixed",),
        "--rerank 5 --top-k 0": ("--rerank is 5 and --top-k 0", "use --top-k of 1 to 5"),
        "--rerank 5 --top-k 6": ("--rerank is 5 and --top-k 6", "a larger --rerank"),
        "--rerank 200 --top-k 5 --shrink 1": ("--shrink 1", "leave one of them out"),
        "--whitening some": ("--whitening is 'some', expected mixed, train or none",),
        "--whitening mixd": ("did you mean mixed?",),
    }.items():
        for command in ("attribute", "compare", "reindex"):
            yield BadInput(f"{command} {arguments}", f"{VALID[command]} {arguments}", words)


def _of_words() -> Iterator[BadInput]:
    yield BadInput("no such command", "indx", ("No such command 'indx'", "index"))
    yield BadInput("no such option", f"{INDEX_COMMAND} --projecton none", ("--projecton", "--projection"))
    yield BadInput("nothing", "index", ("--checkpoint", "--index", "--corpus", "are missing"))
    yield BadInput("no corpus", "index --checkpoint {checkpoint} --index {new}", ("--corpus is missing",))
    yield BadInput("no value", "index --checkpoint", ("--checkpoint",))
    yield BadInput("a word too many", f"{ATTRIBUTE} extra", ("extra",))
    yield BadInput("a value for a flag", f"{ATTRIBUTE} --unit-norm=3", ("--unit-norm",))
    yield BadInput("no directory to show", "show", ("DIRECTORY",))
    yield BadInput("no shell of that name", "completion csh", ("csh",))
    yield BadInput("an escape sequence", f"{INDEX_COMMAND} --dtype \x1b[31mred", ("--dtype is '\\x1b[31mred'",))


def _of_settings() -> Iterator[BadInput]:
    """Every option that is a number or has choices, of every command, with values that are neither."""
    for command, arguments in VALID.items():
        for setting in {s.option.name: s for s in settings_of(app.commands[command].config)}.values():
            for value, word in _wrong_values(setting):
                name = setting.option.name
                yield BadInput(f"{command} {name} {value}", f"{arguments} {name}={value}", (name, word))


def _wrong_values(setting: Setting) -> Iterator[tuple[str, str]]:
    if int in setting.types:
        yield from (("many", "expected a whole number"), ("1.5", "expected a whole number"), ("-1", "expected a whole"))
        yield f"4{'0' * 22}", "at most"
    elif float in setting.types:
        yield from ((value, "expected a number") for value in ("much", "nan", "inf", "-inf", "1e999"))
    elif setting.choices:
        yield "nothing-like-it", f"expected {setting.choices[0]}"
        yield f"{setting.choices[0]}s", f"did you mean {setting.choices[0]}?"


BAD_INPUTS = [
    case
    for cases in (_of_words, _of_settings, _of_checkpoints, _of_corpora, _of_queries, _of_indexes, _of_places,
                  _of_machines, _of_methods)
    for case in cases()
]  # fmt: skip


def make_files(directory: Path, checkpoint: Path) -> dict[str, Path]:
    """Everything that rows of the table name."""
    files = {"checkpoint": checkpoint, "absent": directory / "absent", "new": directory / "new"}
    contents = {
        "corpus": "".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)),
        "queries": "".join(json.dumps(query) + "\n" for query in QUERIES),
        "empty": "",
        "broken_json": '{"id":1',
        "no_text": '{"id": "a", "body": "b"}\n',
        "number_text": '{"id": "a", "text": 3}\n',
        "blank_text": '{"id": "a", "text": "  "}\n',
        "query_no_completion": '{"id": "a", "prompt": "b"}\n',
        "query_blank": '{"id": "a", "prompt": "b", "completion": " "}\n',
        "query_number": '{"id": "a", "prompt": 3, "completion": "c"}\n',
        "query_twice": '{"id": "a", "prompt": "b", "completion": "c"}\n' * 2,
        "query_relevant_text": '{"id": "a", "prompt": "b", "completion": "c", "relevant_ids": "d"}\n',
    }
    for name, content in contents.items():
        files[name] = directory / f"{name}.jsonl"
        files[name].write_text(content)
    files["empty_jsonl"] = files["empty"]
    for name, file, content in (
        ("file", "file", b"x"), ("text_file", "corpus.pdf", b"x"), ("no_gzip", "c.jsonl.gz", b"plain text"),
        ("no_zstd", "c.jsonl.zst", b"plain text"), ("no_parquet", "c.parquet", b"PAR1 and no more"),
        ("not_utf8", "ids.txt", b"\xff\xfe\n"), ("not_utf8_corpus", "latin.jsonl", b'{"text": "\xff"}\n'),
    ):  # fmt: skip
        files[name] = directory / file
        files[name].write_bytes(content)
    files["below_file"] = files["file"] / "below"
    files["empty_directory"] = directory / "empty-directory"
    files["empty_directory"].mkdir()
    _write_parquet(directory, files)
    _write_checkpoints(directory, checkpoint, files)
    _write_indexes(directory, files)
    return files


def _write_parquet(directory: Path, files: dict[str, Path]) -> None:
    import polars as pl

    for name, frame in {"parquet_numbers": {"text": [1, 2]}, "parquet_no_text": {"body": ["a"]}}.items():
        files[name] = directory / f"{name}.parquet"
        pl.DataFrame(frame).write_parquet(files[name])


def _write_checkpoints(directory: Path, checkpoint: Path, files: dict[str, Path]) -> None:
    """Copies of a checkpoint, each with one fault."""
    files["checkpoints"] = directory / "checkpoints"
    files["checkpoints"].mkdir()
    weights = "model.safetensors"
    config = json.loads((checkpoint / "config.json").read_bytes())
    whole = (checkpoint / weights).read_bytes()
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    faults: dict[str, dict[str, bytes | None]] = {
        "no_weights": {weights: None},
        "half_weights": {weights: whole[: len(whole) // 2]},
        "half_header": {weights: whole[:20]},
        "lost_shard": {
            weights: None,
            "model-00001-of-00002.safetensors": whole,
            "model.safetensors.index.json": json.dumps(shards).encode(),
        },
        "bad_bin": {weights: None, "pytorch_model.bin": b"nothing of the kind"},
        "config_no_json": {"config.json": b"{"},
        "config_a_list": {"config.json": b"[]"},
        "config_no_type": {"config.json": b"{}"},
        "encoder_decoder": {"config.json": json.dumps({**config, "is_encoder_decoder": True}).encode()},
        "no_tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
        "tokenizer_no_json": {"tokenizer.json": b'{"version":'},
        "half_optimizer": {"optimizer.pt": b"PK\x03\x04 and no more"},
    }
    for name, changes in faults.items():
        files[name] = directory / name
        shutil.copytree(checkpoint, files[name])
        for file, content in changes.items():
            (files[name] / file).unlink(missing_ok=True)
            if content is not None:
                (files[name] / file).write_bytes(content)


def _write_indexes(directory: Path, files: dict[str, Path]) -> None:
    """Enough of an index to be opened."""
    R_train = Artifact(name=f"autocorrelation/{DIGITS}", digest="0", facts={"sample": None, "num_documents": 20})
    facts = {"num_documents": 20, "block_dims": {"mlp.00": 16}}
    for name, R in (("index", R_train), ("no_r_train", None)):
        files[name] = directory / name
        files[name].mkdir()
        index = Index(
            engine=EngineSpec(
                index=str(files[name]),
                checkpoint=Checkpoint(path=str(files["checkpoint"]), digest="0", optimizer_digest=None),
                model=ModelConfig(),
                gradient=GradientConfig(projection_dim=4),
                second_moment=None,
            ),
            corpus=CorpusConfig(paths=(str(files["corpus"]),)),
            shards=(Artifact(name=f"shards/{DIGITS}", digest="0", facts=facts),),
            autocorrelation=R,
        )
        (files[name] / INDEX).write_bytes(index_bytes(json.loads(index.model_dump_json())))
