"""Arguments that name nothing, and arguments that could be taken for two things: seen before anything is read."""

import pytest
from pydantic import ValidationError

from tests.flows.test_cli import run
from trackstar.flows.config import AttributeConfig, CompareConfig, IndexConfig, ReindexConfig, WithdrawConfig
from trackstar.flows.demo import DemoConfig
from trackstar.flows.mnist import MnistConfig
from trackstar.storage.errors import InputError

CORPUS = {"paths": ["corpus.jsonl"]}
INDEX = {"checkpoint": "c", "index": "i", "corpus": CORPUS}
ATTRIBUTE = {"index": "i", "out": "o", "queries": "q"}
REINDEX = {"checkpoints": "c", "indexes": "i", "corpus": CORPUS}
PLACES = [
    *((IndexConfig, INDEX, name) for name in ("checkpoint", "index")),
    *((AttributeConfig, ATTRIBUTE, name) for name in ATTRIBUTE),
    *((CompareConfig, ATTRIBUTE, name) for name in ("dense_encoder", "entailment_model")),
    *((ReindexConfig, REINDEX, name) for name in ("checkpoints", "indexes", "queries")),
    *((WithdrawConfig, {"index": "i", "ids": ("d1",)}, name) for name in ("index", "ids_file")),
    (DemoConfig, {"out": "o"}, "out"),
    *((MnistConfig, {"out": "o"}, name) for name in ("out", "data")),
]


@pytest.mark.parametrize("value", ["", "  ", "\n"])
@pytest.mark.parametrize(("config", "others", "field"), PLACES, ids=lambda value: getattr(value, "__name__", None))
def test_no_form_takes_an_empty_path(config, others, field, value):
    with pytest.raises(ValidationError, match="names nothing"):
        config.model_validate({**others, field: value})


@pytest.mark.parametrize("config", [(IndexConfig, INDEX), (ReindexConfig, REINDEX)])
def test_no_form_takes_a_corpus_or_a_further_checkpoint_of_an_empty_path(config):
    model, others = config
    with pytest.raises(ValidationError, match="names nothing"):
        model.model_validate({**others, "corpus": {"paths": ["corpus.jsonl", " "]}})
    with pytest.raises(ValidationError, match="names nothing"):
        CompareConfig.model_validate({**ATTRIBUTE, "also_checkpoints": ["c", ""]})


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "--checkpoint", "c", "--corpus", "c.jsonl", "--index", ""),
        ("index", "--checkpoint", "", "--corpus", "c.jsonl", "--index", "i"),
        ("index", "--checkpoint", "c", "--corpus", "", "--index", "i"),
        ("attribute", "--index", "", "--queries", "q", "--out", "o"),
        ("attribute", "--index", "i", "--queries", "", "--out", "o"),
        ("attribute", "--index", "i", "--queries", "q", "--out", " "),
        ("compare", "--index", "i", "--queries", "q", "--out", "o", "--dense-encoder", ""),
        ("reindex", "--checkpoints", "", "--corpus", "c.jsonl", "--indexes", "i"),
        ("withdraw", "--index", "", "--ids", "d1"),
        ("withdraw", "--index", "i", "--ids", ""),
        ("withdraw", "--index", "i", "--ids-file", ""),
        ("demo", "--out", ""),
        ("mnist", "--out", ""),
        ("show", ""),
        ("verify", " "),
        ("selfcheck", "--checkpoint", ""),
    ],
    ids=" ".join,
)
def test_no_command_takes_an_empty_argument_for_the_current_directory(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, output, error = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_an_id_even_where_a_file_or_a_page_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("d7\nd8\n")
    monkeypatch.setattr("trackstar.flows.config.read_ids", None)  # no file is opened for them, and nothing is fetched
    ids = ("notes.txt", str(tmp_path / "notes.txt"), "https://example.invalid/ids", "s3://bucket/ids", "..", "-")
    assert WithdrawConfig(index="i", ids=ids).asked() == list(ids)


def test_ids_by_themselves_come_before_those_of_a_file(tmp_path):
    (tmp_path / "ids.txt").write_text("d7\nhttps://example.invalid/ids\n")
    config = WithdrawConfig(index="i", ids=("d1",), ids_file=str(tmp_path / "ids.txt"))
    assert config.asked() == ["d1", "d7", "https://example.invalid/ids"]


def test_to_withdraw_nothing_is_refused():
    with pytest.raises(InputError, match="no document is named; give ids, or an ids file"):
        WithdrawConfig(index="i").asked()


def test_an_index_is_not_built_in_a_directory_of_indexes(tmp_path, llama, corpus):
    (tmp_path / "indexes" / "step-1").mkdir(parents=True)
    (tmp_path / "indexes" / "step-1" / "index.json").write_text('{"engine": {}, "shards": []}')
    config = {"checkpoint": str(llama), "index": str(tmp_path / "indexes"), "corpus": {"paths": [str(corpus)]}}
    with pytest.raises(InputError, match=r"holds indexes and is none; name one of them, such as .*step-1"):
        IndexConfig.model_validate(config).check()
