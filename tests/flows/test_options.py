"""The options of commands are the settings of flows: none is missing, none is told twice, all can be read."""

import subprocess
import sys
from typing import Annotated, Literal

import pytest
from click.testing import CliRunner
from pydantic import Field

from trackstar.flows.cli.commands import app
from trackstar.flows.cli.options import settings_of, spread, values
from trackstar.flows.config import (
    AttributeConfig,
    CompareConfig,
    DemoConfig,
    IndexConfig,
    IndexingConfig,
    ReindexConfig,
)
from trackstar.tasks.runtime.settings import Option, Settings

COMMANDS = {name: command for name, command in app.commands.items() if command.config is not None}
HEAVY = ("torch", "prefect", "transformers", "polars", "numpy", "rich")


def run(*arguments, width=80):
    return CliRunner(env={"COLUMNS": str(width)}).invoke(app, list(arguments))


def read(config, *arguments):
    """The settings that a command line makes."""
    command = next(command for command in COMMANDS.values() if command.config is config)
    context = command.make_context(command.name, list(arguments))
    return config.model_validate(values(config, context.params))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_an_option_with_help(name):
    output = run(name, "-h").output
    for setting in settings_of(COMMANDS[name].config):
        option = setting.option.name.removeprefix("--")
        assert f"--{option} " in output or f"--[no-]{option} " in output
        assert setting.field.description


@pytest.mark.parametrize("name", app.commands)
def test_help_fits_80_columns_with_an_example(name):
    output = run(name, "-h").output
    assert max(map(len, output.splitlines())) <= 80
    assert f"$ {app.commands[name].example.split()[0]}" in output


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_that_share_an_option_are_read_alike(name):
    by_option = {}
    for setting in settings_of(COMMANDS[name].config):
        other = by_option.setdefault(setting.option.name, setting)
        alike = [(s.types, s.limits, s.default, s.is_list) for s in (setting, other)]
        assert alike[0] == alike[1], setting.option.name


def test_reindex_takes_what_index_takes():
    names = [{setting.option.name for setting in settings_of(config)} for config in (IndexConfig, ReindexConfig)]
    assert names[0] - names[1] == {"--checkpoint", "--index"}
    assert names[1] - names[0] >= {"--checkpoints", "--indexes", "--keep-last", "--mixing-weight", "--damping"}
    assert {s.option.name for s in settings_of(IndexingConfig)} <= names[0] & names[1]


def test_only_what_was_given_reaches_the_settings(tmp_path):
    common = ("--index", "i", "--queries", "q", "--out", "o")
    config = read(CompareConfig, *common, "--damping", "0.5", "--methods", "trackstar,random", "--methods", "bm25")
    assert config.score == CompareConfig.model_fields["score"].default.model_copy(update={"damping": 0.5})
    assert config.score.top_k == 100
    assert config.methods == ("trackstar", "random", "bm25")
    assert read(DemoConfig, "--projection-dim", "16").tail_patch.num_proponents == 5


def test_an_index_that_is_given_again_is_a_further_one():
    common = ("--queries", "q", "--out", "o", "--index", "a")
    assert read(AttributeConfig, *common).further_indexes == ()
    config = read(AttributeConfig, *common, "--index", "b", "--further-indexes", "d", "--index", "c")
    names = [url.rpartition("/")[2] for url in (config.index, *config.further_indexes)]
    assert names == ["a", "b", "c", "d"]


def test_one_option_sets_every_seed():
    config = read(IndexConfig, "--checkpoint", "c", "--corpus", "a", "b", "--index", "i", "--seed", "7")
    assert (config.gradient.seed, config.second_moment.seed, config.curvature.seed) == (7, 7, 7)
    assert config.corpus.paths == ("a", "b")


def test_an_old_name_is_understood_and_not_shown():
    config = read(IndexConfig, "--checkpoint", "c", "--corpus", "a", "--index", "i", "--store-dtype", "float16")
    assert config.store_as == "float16"
    assert "--store-dtype" not in run("index", "-h").output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--corpus a b --index i", "--corpus a --corpus b --index i"),
        ("--corpus a --dry-run b", "--corpus a --dry-run b"),
        ("--corpus=a b", "--corpus=a b"),
        ("--corpus", "--corpus"),
        ("x --corpus a -q", "x --corpus a -q"),
    ],
)
def test_an_option_of_several_words_takes_all_that_follow(words, expected):
    assert spread(words.split(), ["--corpus"]) == expected.split()


def test_a_new_field_is_an_option_without_another_line():
    class Nested(Settings):
        """Some settings."""

        option_prefix = "toy"

        kind: Literal["one", "two"] = Field("one", description="Which one.")
        parts: tuple[str, ...] = Field((), description="Which parts.")
        other: Annotated[float, Option("--renamed")] = Field(0.5, gt=0, description="How much.")

    class Config(Settings):
        """Settings of a flow."""

        nested: Nested = Nested()
        depth: int | None = Field(None, ge=1, description="How deep.")

    found = {setting.option.name: setting for setting in settings_of(Config)}
    assert list(found) == ["--toy-kind", "--toy-parts", "--renamed", "--depth"]
    assert found["--depth"].expected == "a whole number, at least 1"
    assert found["--renamed"].expected == "a number, above 0"
    assert found["--toy-kind"].choices == ("one", "two")
    given = {"toy_kind": "two", "toy_parts": ("a,b", "c"), "renamed": "2", "depth": None}
    nested = {"kind": "two", "parts": ["a", "b", "c"], "other": "2"}
    assert values(Config, given) == {"nested": nested}
    assert Config.model_validate(values(Config, given)).nested.parts == ("a", "b", "c")


@pytest.mark.parametrize("arguments", [["-h"], ["index", "-h"], ["--version"], ["index", "--dtype", "double"], []])
def test_help_and_wrong_values_load_nothing_heavy(arguments):
    script = (
        f"import sys\nfrom trackstar.flows.cli import commands as cli\ncli.respond({arguments})\n"
        f"loaded = {set(HEAVY)} & set(sys.modules)\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_shell_completes_commands_options_and_choices():
    def complete(words):
        count = len(words.split()) - (not words.endswith(" "))
        environment = {"_TRACKSTAR_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        result = CliRunner(env=environment).invoke(app, prog_name="trackstar")
        return {line.partition(",")[2] for line in result.output.splitlines()}

    assert {"index", "attribute"} <= complete("trackstar ")
    assert "--second-moment" in complete("trackstar index --second")
    assert {"factored", "full"} <= complete("trackstar index --second-moment f")
    assert "_TRACKSTAR_COMPLETE=bash_complete" in run("completion", "bash").output
