import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from tests.tiny import TEXTS, save_encoder
from trackstar.storage.errors import InputError
from trackstar.tasks.methods.dense import embed, read_encoder
from trackstar.tasks.methods.pooling import UNSTATED, Pooling

pytestmark = pytest.mark.numerical


@pytest.fixture
def encoder(tmp_path):
    return save_encoder(tmp_path / "encoder")


def write_settings(encoder, name, **settings):
    path = encoder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))


def embeddings(encoder, texts):
    return np.concatenate(list(embed(read_encoder(str(encoder)), texts)))


def test_embeddings_have_length_one_and_do_not_depend_on_company(encoder):
    together = embeddings(encoder, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    alone = np.concatenate([embeddings(encoder, [text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)  # float32 states, padded or not


def test_a_text_is_read_up_to_what_sentence_transformers_was_told(encoder):
    assert read_encoder(str(encoder)).max_tokens == 64  # the model's positions
    write_settings(encoder, "sentence_bert_config.json", max_seq_length=6)
    assert read_encoder(str(encoder)).max_tokens == 6
    long, cut = embeddings(encoder, ["The river sleeps under the bridge.", "The river sleeps under the bridge. Again!"])
    np.testing.assert_allclose(long, cut, atol=1e-5)


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "own_pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_states_are_pooled_as_the_encoder_says(encoder, mode):
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    settings = {f"pooling_mode_{name}": name == names[mode] for name in names.values()}
    (encoder / "modules.json").write_text(json.dumps(MODULES))
    write_settings(encoder, "own_pooling/config.json", **settings)
    found = read_encoder(str(encoder))
    assert (found.pooling.mode, found.pooling.source) == (mode, "own_pooling/config.json")
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    for text, vector in zip(TEXTS[:3], embeddings(encoder, TEXTS[:3]), strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach()
        expected = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[mode]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(expected, dim=0), atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pools by cls and mean"),
        ({"pooling_mode": "weightedmean"}, "pools by weightedmean"),
    ],
)
def test_an_encoder_that_pools_otherwise_is_refused(encoder, chosen, sentence):
    write_settings(encoder, "1_Pooling/config.json", **chosen)
    with pytest.raises(InputError, match=sentence):
        read_encoder(str(encoder))


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"path": "3_Dense", "type": "sentence_transformers.models.Dense"}, "has the step Dense, which would be left"),
        ({"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}, "elsewhere than beside it"),
    ],
)
def test_a_step_that_would_be_left_out_is_refused(encoder, step, sentence):
    (encoder / "modules.json").write_text(json.dumps([*MODULES, step]))
    with pytest.raises(InputError, match=sentence):
        read_encoder(str(encoder))


def test_an_encoder_that_states_no_pooling_is_averaged_and_that_is_said(encoder, caplog):
    assert read_encoder(str(encoder)).pooling == Pooling(mode="mean", source=UNSTATED)
    assert "states no pooling (modules.json); its states are averaged" in caplog.text


def test_a_causal_model_as_an_encoder_is_not_taken_without_a_word(llama, caplog):
    found = read_encoder(str(llama))
    assert (found.architecture, found.pooling.source) == ("LlamaModel", UNSTATED)
    assert "is a LlamaForCausalLM, a causal language model; its states are averaged" in caplog.text


def test_an_encoder_with_a_tensor_missing_is_refused_and_its_unused_head_may_be(encoder):
    tensors = load_file(encoder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "pooler" not in name}, encoder / "model.safetensors")
    assert read_encoder(str(encoder)).max_tokens == 64
    save_file({name: t for name, t in tensors.items() if "query.weight" not in name}, encoder / "model.safetensors")
    with pytest.raises(InputError, match=r"has no encoder\.layer\.0\.attention\.self\.query\.weight"):
        read_encoder(str(encoder))


def test_an_encoder_that_does_not_say_how_much_it_reads_is_refused(encoder):
    config = json.loads((encoder / "config.json").read_text())
    write_settings(encoder, "config.json", **{k: v for k, v in config.items() if k != "max_position_embeddings"})
    with pytest.raises(InputError, match="max_seq_length"):
        read_encoder(str(encoder))


def test_a_broken_settings_file_is_named(encoder):
    (encoder / "sentence_bert_config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_encoder(str(encoder))
