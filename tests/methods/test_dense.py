import json

import numpy as np
import pytest

from tests.tiny import TEXTS, save_encoder
from trackstar.storage.errors import InputError
from trackstar.tasks.methods.dense import _embed, read_encoder


@pytest.fixture
def encoder(tmp_path):
    return save_encoder(tmp_path / "encoder")


def write_settings(encoder, name, **settings):
    path = encoder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))


def embed(encoder, texts):
    return np.concatenate(list(_embed(read_encoder(str(encoder)), texts)))


def test_embeddings_have_length_one_and_do_not_depend_on_company(encoder):
    together = embed(encoder, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    alone = np.concatenate([embed(encoder, [text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)  # float32 states, padded or not


def test_a_text_is_read_up_to_what_sentence_transformers_was_told(encoder):
    assert read_encoder(str(encoder)).max_tokens == 64  # the model's positions
    write_settings(encoder, "sentence_bert_config.json", max_seq_length=6)
    assert read_encoder(str(encoder)).max_tokens == 6
    long, cut = embed(encoder, ["The river sleeps under the bridge.", "The river sleeps under the bridge. Again!"])
    np.testing.assert_allclose(long, cut, atol=1e-5)


def test_an_encoder_that_pools_otherwise_is_refused(encoder):
    write_settings(encoder, "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    with pytest.raises(InputError, match="pools in another way"):
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
