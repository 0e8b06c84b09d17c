"""The command line: exit codes, one sentence for what is wrong, and nothing heavy behind ``--help``."""

import json
import subprocess
import sys

import pytest

from tests.flows.runs import build
from trackstar.flows.cli import commands as cli


def run(*arguments, monkeypatch, capsys):
    """Exit code, standard output and standard error of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["trackstar", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture
def trackstar(monkeypatch, capsys):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def index(indexed):
    return indexed()


def test_help_loads_neither_torch_nor_prefect():
    script = (
        "import sys\nsys.argv = ['trackstar', '--help']\nfrom trackstar.flows.cli import commands as cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'prefect', 'transformers', 'polars'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_every_command_explains_itself(trackstar):
    for command in ("index", "attribute", "compare", "demo", "show", "verify"):
        code, output, _ = trackstar(command, "--help")
        assert code == 0
        assert "Usage" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--checkpoint", "nowhere", "--corpus", "{corpus}"), "does not exist"),
        (("--checkpoint", "{llama}", "--corpus", "nowhere.jsonl"), "nowhere.jsonl"),
        (
            ("--checkpoint", "{llama}", "--corpus", "{corpus}", "--second-moment", "third"),
            "--second-moment is 'third'",
        ),
        (
            ("--checkpoint", "{llama}", "--corpus", "{corpus}", "--projection", "sparse"),
            "--projection is 'sparse'",
        ),
    ],
)
def test_wrong_index_arguments_exit_with_2_and_one_line(trackstar, llama, corpus, tmp_path, arguments, sentence):
    filled = [argument.format(llama=llama, corpus=corpus) for argument in arguments]
    code, output, error = trackstar("index", "--index", tmp_path / "index", *filled)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--mixing-weight", "1"), "less than 1"),
        (("--mixing-weight", "1.5"), "less than 1"),
        (("--mixing-weight", "nan"), "mixing"),
        (("--mixing-weight", "abc"), "--mixing-weight is 'abc', expected a number or auto"),
        (("--whitening", "some"), "--whitening is 'some', expected mixed, train or none"),
    ],
)
def test_wrong_score_arguments_exit_with_2_and_one_line(trackstar, index, queries, tmp_path, options, sentence):
    code, _, error = trackstar("attribute", "--index", index, "--queries", queries, "--out", tmp_path / "out", *options)
    assert code == 2
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_wrong_files_exit_with_2_and_one_line(trackstar, index, queries, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "q", "prompt": "x"}\n')
    for directory, file, sentence in [
        (tmp_path / "none", queries, "holds no finished index"),
        (index, tmp_path / "none.jsonl", "none.jsonl"),
        (index, tmp_path / "bad.jsonl", "line 1"),
    ]:
        code, _, error = trackstar("attribute", "--index", directory, "--queries", file, "--out", tmp_path / "out")
        assert code == 2
        assert sentence in error
        assert error.count("\n") == 1


def test_pruning_frees_what_a_query_left_and_the_same_query_is_answered_alike(trackstar, index, queries, tmp_path):
    def ask(out):
        assert trackstar("attribute", "--index", index, "--queries", queries, "--out", tmp_path / out, "-q")[0] == 0
        return (tmp_path / out / "proponents.parquet").read_bytes()

    before = ask("before")
    code, output, _ = trackstar("prune", index, "--json")
    assert code == 0
    assert json.loads(output)["kinds"]["rankings"]["count"] == 1
    assert not any((index / "rankings").iterdir())
    assert ask("after") == before


def test_an_unknown_method_is_refused_with_the_known_ones(trackstar, index, queries, tmp_path):
    arguments = ("--index", index, "--queries", queries, "--out", tmp_path / "out", "--methods", "trackstar,bm52")
    code, _, error = trackstar("compare", *arguments)
    assert code == 2
    assert "'bm52'" in error
    assert "bm25" in error


@pytest.mark.usefixtures("prefect_server")
def test_a_session_from_checkpoint_to_report(trackstar, llama, corpus, queries, tmp_path):
    files = sorted(corpus.iterdir())
    common = ("--projection-dim", 4, "--shard-size", 7)
    code, output, _ = trackstar("index", "--checkpoint", llama, "--corpus", *files, "--index", tmp_path / "i", *common)
    assert code == 0
    assert "20" in output
    results = ("--index", tmp_path / "i", "--queries", queries, "--out", tmp_path / "out")
    code, output, _ = trackstar("attribute", *results, "--top-k", 3)
    assert code == 0
    assert "The river sleeps under" in output
    assert output.endswith(f"Next: trackstar show {tmp_path / 'out'}\n")
    code, output, _ = trackstar("attribute", *results, "--top-k", 3, "--json")
    assert code == 0
    assert json.loads(output).items() <= json.loads((tmp_path / "out" / "run.json").read_text()).items()  # and digests
    assert trackstar("attribute", *results, "--top-k", 3, "--quiet") == (0, "", "")
    code, output, _ = trackstar(
        "compare", *results, "--methods", "trackstar,no_unit_norm,bm25,random", "--tail-patch", 2
    )
    assert code == 0
    assert "no_unit_norm" in output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "proponents.parquet",
        "proponents.csv",
        "proponents.jsonl",
        "run.json",
        "metrics.json",
        "tail_patch.parquet",
        "report.html",
    }
    for directory in (tmp_path / "i", tmp_path / "out"):
        assert trackstar("show", directory)[0] == 0
    assert json.loads(trackstar("show", tmp_path / "i", "--json")[1])["documents"] == 20
    assert "methods" in json.loads(trackstar("show", tmp_path / "out", "--json")[1])
    assert trackstar("verify", tmp_path / "i")[0] == 0
    assert json.loads(trackstar("verify", tmp_path / "i", "--json")[1])["is_sound"]


def test_damage_is_one_line_on_reading_and_repaired_by_verify_and_index(
    trackstar, index, llama, corpus, queries, tmp_path
):
    from tests.flows.runs import files

    build(index, llama, corpus)  # a copy that is of this corpus
    before = files(index)
    chunk = next(path for path in sorted(index.glob("shards/*/gradients.zarr/mlp.00/c/*/*")))
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(bytes(content))
    attribute = ("attribute", "--index", index, "--queries", queries, "--out", tmp_path / "out")
    code, _, error = trackstar(*attribute)
    assert code == 1
    last = error.rstrip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "mlp.00" in last
    assert "--repair" in last
    assert trackstar("verify", index)[0] == 1
    assert trackstar("verify", index, "--repair")[0] == 0
    build(index, llama, corpus)
    after = files(index)
    assert {name: after[name] for name in before} == before
