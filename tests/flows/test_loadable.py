"""A checkpoint that could not be loaded wholly is refused by every command before any of its work is done."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.flows.runs import build, files
from tests.tiny import save_encoder
from trackstar.flows.attribute import attribute
from trackstar.flows.compare import compare
from trackstar.flows.config import AttributeConfig, CompareConfig, ReindexConfig
from trackstar.flows.reindex import reindex
from trackstar.storage.errors import InputError, PartlyDoneError

pytestmark = pytest.mark.usefixtures("prefect_server")

REFUSAL = r"has no model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM would fill with random numbers"


@pytest.fixture
def checkpoint(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "checkpoint")


def drop_a_tensor(checkpoint):
    file = checkpoint / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "layers.1.mlp.up_proj" not in name}, file)


def config(cls, index, queries, tmp_path, **settings):
    return cls.model_validate({"index": str(index), "queries": str(queries), "out": str(tmp_path / "out"), **settings})


def test_an_index_of_it_is_not_begun(checkpoint, corpus, tmp_path):
    drop_a_tensor(checkpoint)
    with pytest.raises(InputError, match=REFUSAL):
        build(tmp_path / "index", checkpoint, corpus)
    assert not (tmp_path / "index").exists()


def test_an_optimizer_state_that_is_not_read_is_refused_before_any_work_unless_an_estimate_is_asked_for(
    checkpoint, corpus, tmp_path
):
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "global_step3").mkdir()
    with pytest.raises(InputError, match=r"\(global_step3\), .*: use --second-moment estimated$"):
        build(tmp_path / "index", checkpoint, corpus)
    assert not (tmp_path / "index").exists()
    built = build(tmp_path / "index", checkpoint, corpus, mode="estimated")
    assert built.engine.second_moment.facts["mode"] == "estimated"


def test_queries_are_not_asked_of_it(checkpoint, corpus, queries, tmp_path):
    build(tmp_path / "index", checkpoint, corpus)
    before = files(tmp_path / "index")
    drop_a_tensor(checkpoint)
    with pytest.raises(InputError, match=REFUSAL):
        attribute(config(AttributeConfig, tmp_path / "index", queries, tmp_path))
    assert files(tmp_path / "index") == before
    assert not (tmp_path / "out").exists()


def test_gradients_of_another_model_are_not_added_up(checkpoint, gpt2, corpus, queries, tmp_path):
    index = tmp_path / "index"
    build(index, checkpoint, corpus)
    before = files(index)
    refusals = {
        str(gpt2): "is a GPT2LMHeadModel and .* a LlamaForCausalLM; give checkpoints of one training",
        str(checkpoint): "is the same checkpoint as",
    }
    for other, refusal in refusals.items():
        settings = {"methods": ["grad_dot"], "also_checkpoints": [other]}
        with pytest.raises(InputError, match=refusal):
            compare(config(CompareConfig, index, queries, tmp_path, **settings))
        assert not (index / "plain_shards").exists()
    assert files(index).keys() >= before.keys()
    drop_a_tensor(shutil.copytree(checkpoint, tmp_path / "other"))
    settings = {"methods": ["grad_dot"], "also_checkpoints": [str(tmp_path / "other")]}
    with pytest.raises(InputError, match=REFUSAL):
        compare(config(CompareConfig, index, queries, tmp_path, **settings))


def test_the_run_says_how_the_sentence_encoder_pooled(checkpoint, corpus, queries, tmp_path):
    index = tmp_path / "index"
    build(index, checkpoint, corpus)
    encoder = save_encoder(tmp_path / "encoder")
    settings = {"methods": ["dense"], "dense_encoder": str(encoder), "tail_patch": {"num_proponents": 0}}
    compare(config(CompareConfig, index, queries, tmp_path, **settings))
    facts = (tmp_path / "out" / "run.json").read_text()
    assert '"pooling": "mean"' in facts
    assert '"pooling_source": "not stated by the encoder"' in facts
    assert '"architecture": "BertModel"' in facts


def test_reindex_goes_on_to_the_others_and_then_says_which_it_refused(checkpoint, corpus, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(checkpoint, runs / "step-1")
    drop_a_tensor(checkpoint)
    shutil.copytree(checkpoint, runs / "step-2")
    settings = {
        "checkpoints": str(runs),
        "indexes": str(tmp_path / "indexes"),
        "corpus": {"paths": [str(corpus)]},
        "gradient": {"projection_dim": 4},
        "keep_last": 1,
    }
    with pytest.raises(PartlyDoneError, match=f"1 of 2 checkpoints failed, .*step-2 {REFUSAL}"):
        reindex(ReindexConfig.model_validate(settings))
    (built,) = (entry for entry in (tmp_path / "indexes").iterdir() if (entry / "index.json").exists())
    assert built.name.startswith("step-1-")
