"""``trackstar ask`` as a person and a program meet it, and what importing the front door costs."""

import json
import os
import subprocess
import sys

import pytest

import trackstar
from tests.tiny import QUERIES
from trackstar.flows.cli import commands as cli

PROMPT, COMPLETION = QUERIES[0]["prompt"], QUERIES[0]["completion"]


@pytest.fixture
def ask(capsys, monkeypatch):
    """Exit code, standard output and standard error of one question, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["trackstar", "ask", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def test_a_program_gets_one_json_object(ask, llama_index):
    code, output, _ = ask("--index", llama_index.path, PROMPT, COMPLETION, "--top-k", 2, "--json")
    found = json.loads(output)
    assert code == 0
    assert output.isascii()
    assert found["completion"] == COMPLETION
    assert [p["rank"] for p in found["proponents"]] == [1, 2]
    assert found["index"] == str(llama_index.path)


def test_a_person_gets_texts_in_80_columns(ask, llama_index, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = ask("--index", llama_index.path, PROMPT, "--methods", "trackstar,bm25", "--contrast", " Vienna")
    assert code == 0
    assert all(len(line) <= 80 for line in output.splitlines())
    assert "trackstar: proponents" in output
    assert "bm25: proponents" in output
    assert "(what the model says)" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((PROMPT, COMPLETION, "--methods", "nothing"), "'nothing' cannot be asked at once"),
        ((PROMPT, ""), "the completion is ''"),
        ((PROMPT, COMPLETION, "--mixing-weight", "0.5"), "one question alone has no R_eval"),
        ((PROMPT, COMPLETION, "--background", "[bold]nowhere"), "[bold]nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(ask, arguments, sentence, llama_index):
    code, output, error = ask("--index", llama_index.path, *arguments)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_no_index_is_one_line_and_exit_code_2(ask, tmp_path):
    code, _, error = ask("--index", tmp_path, PROMPT)
    assert code == 2
    assert "holds no finished index" in error


def python(script, *arguments):
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_the_front_door_opens_without_anything_heavy_and_a_question_without_prefect(llama_index):
    script = (
        "import sys, trackstar\n"
        "heavy = {'torch', 'transformers', 'prefect', 'polars', 'numpy', 'zarr', 'dask'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert trackstar.__version__ and 'open' in trackstar.__all__ and 'Answer' in dir(trackstar)\n"
        "trackstar.open(sys.argv[1]).ask(sys.argv[2], sys.argv[3])\n"
        "late = {'prefect', 'distributed', 'matplotlib', 'sklearn'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    python(script, llama_index.path, PROMPT, COMPLETION)


def test_the_command_imports_no_prefect(llama_index):
    script = (
        "import sys\n"
        "sys.argv = ['trackstar', 'ask', '--index', *sys.argv[1:]]\n"
        "from trackstar.flows.cli.commands import main\n"
        "main()\n"
        "assert not {'prefect', 'distributed'} & set(sys.modules)\n"
    )
    assert "trackstar: proponents" in python(script, llama_index.path, PROMPT, COMPLETION)


def test_every_name_of_the_front_door_is_there():
    for name in trackstar.__all__:
        assert getattr(trackstar, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trackstar.nothing  # noqa: B018
