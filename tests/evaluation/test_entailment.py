import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaConfig

from tests.tiny import CONTEXT, TEXTS, save_classifier, save_encoder
from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.evaluation.entailment_model import (
    PAIRS_AT_ONCE,
    _max_tokens,
    entailment_probabilities,
    read_entailment_model,
)
from trackstar.tasks.evaluation.settings import require_undecided

HYPOTHESES = ("The river sleeps under the bridge.", "Vienna", "A heron was painted green.")
PAIRS = [(text, said) for said in HYPOTHESES for text in (*TEXTS, " ".join(TEXTS), "")]
LABELS = ("contradiction", "neutral", "ENTAILMENT")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier") / "nli", LABELS)


def probabilities(directory, pairs):
    values = np.full(len(pairs), np.nan)
    for rows, found in entailment_probabilities(read_entailment_model(str(directory)), pairs):
        values[rows] = found
    return values


def one_by_one(directory, pairs):
    """Nothing is padded, and a premise loses its last tokens by hand."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    values = []
    for premise, said in pairs:
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        room = CONTEXT - 3 - len(ids)
        cut = tokenizer(premise, add_special_tokens=False)["input_ids"][:room]
        tokens = [tokenizer.cls_token_id, *cut, tokenizer.sep_token_id, *ids, tokenizer.sep_token_id]
        sides = [0] * (len(cut) + 2) + [1] * (len(ids) + 1)
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), token_type_ids=torch.tensor([sides])).logits[0].double()
        values.append(float(logits.exp()[2] / logits.exp().sum()))
    return np.array(values)


def test_probabilities_are_those_of_the_model_asked_one_pair_at_a_time(directory):
    assert len(PAIRS) > 2 * PAIRS_AT_ONCE
    expected = one_by_one(directory, PAIRS)
    assert np.ptp(expected) > 0.1  # the pairs are told apart at all
    np.testing.assert_allclose(probabilities(directory, PAIRS), expected, atol=1e-5)  # float32 states, padded or not


def test_a_long_document_is_cut_and_the_hypothesis_is_not(directory):
    start = " ".join(TEXTS)
    assert probabilities(directory, [(start, "Vienna")]) == probabilities(directory, [(start + " Vienna", "Vienna")])
    said = " ".join(["river"] * (CONTEXT - 4))  # leaves one token of the document
    first, second = probabilities(directory, [("heron crosses", said), ("heron sleeps", said)])
    assert first == pytest.approx(second, abs=1e-6)
    with pytest.raises(InputError, match=f"is {CONTEXT} tokens to .* shorten the prompt"):
        probabilities(directory, [("heron", said + " river")])


def test_nothing_to_judge_loads_no_model(directory, monkeypatch):
    monkeypatch.setattr("trackstar.tasks.evaluation.entailment_model._load", None)
    assert len(probabilities(directory, [])) == 0


@pytest.mark.parametrize("labels", [("entailment", "not_entailment"), ("neutral", "Entailment", "contradiction")])
def test_the_label_is_found_by_its_name_whatever_its_place_and_case(tmp_path, labels):
    found = read_entailment_model(str(save_classifier(tmp_path / "nli", labels)))
    assert labels[found.label_index].lower() == "entailment"
    assert found.max_tokens == CONTEXT


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment",), ("entailment", "ENTAILMENT")])
def test_a_model_without_one_label_of_that_name_is_refused_with_the_labels_it_has(tmp_path, labels):
    directory = save_classifier(tmp_path / "nli", labels)
    with pytest.raises(InputError, match=f"has the labels {', '.join(labels)}; one of two or more must be called"):
        read_entailment_model(str(directory))


def test_the_first_positions_of_roberta_are_not_to_be_read(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert _max_tokens(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer, "") == 512
    tokenizer.model_max_length = 100
    assert _max_tokens(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer, "") == 100


def test_a_model_without_a_classifier_is_refused_and_not_completed_at_random(tmp_path):
    directory = save_encoder(tmp_path / "encoder")
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = {"0": "entailment", "1": "neutral"}
    (directory / "config.json").write_text(json.dumps(config))
    refusal = r"has no classifier\.bias and 1 more, which BertForSequenceClassification would fill .* classify pairs"
    with pytest.raises(InputError, match=refusal):
        read_entailment_model(str(directory))


def test_weights_that_would_be_unpickled_are_refused(tmp_path):
    directory = save_classifier(tmp_path / "nli", LABELS)
    weights = AutoModelForSequenceClassification.from_pretrained(directory).state_dict()
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"keeps weights in pytorch_model\.bin, expected safetensors"):
        read_entailment_model(str(directory))


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        read_entailment_model(str(tmp_path))


def test_a_model_with_nothing_to_judge_is_the_users_mistake():
    known = [
        Query(id="a", prompt="p", completion="c", relevant_ids=["d1"]),
        Query(id="b", prompt="p", completion="c", aliases=["x"]),
    ]
    with pytest.raises(InputError, match="for queries with neither; leave it out"):
        require_undecided(known)
    require_undecided([*known, Query(id="c", prompt="p", completion="c")])
