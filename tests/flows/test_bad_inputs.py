"""Every wrong input is one sentence and exit code 2, before anything is started or written."""

import shlex

import pytest

from tests.flows.bad_inputs import BAD_INPUTS, make_files
from trackstar.flows.cli import commands as cli
from trackstar.flows.cli import running as commands


@pytest.fixture(scope="module")
def files(llama, tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("bad"), llama)


@pytest.fixture(autouse=True)
def without_credentials(monkeypatch):
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")


@pytest.mark.parametrize("case", BAD_INPUTS, ids=lambda case: case.name)
def test_a_wrong_input_is_one_sentence_before_anything_starts(case, files, monkeypatch, capsys):
    monkeypatch.setattr(commands, "start", lambda *_: pytest.fail("a flow was started"))
    arguments = [argument.format_map(files) for argument in shlex.split(case.arguments)]
    code = cli.respond(arguments)
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, ""), captured
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert all(word in captured.err for word in case.words), captured.err
    assert not files["new"].exists()


def test_no_two_rows_have_one_name():
    names = [case.name for case in BAD_INPUTS]
    assert len(set(names)) == len(names) > 400
