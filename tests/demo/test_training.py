import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.demo.training import (
    OPTIMIZER_FILE,
    TrainingConfig,
    batches,
    completion_probabilities,
    num_steps,
    sentence_loss,
    train_demo_model,
    train_tokenizer,
)

pytestmark = pytest.mark.numerical

SENTENCES = [
    "Paris is the capital of France.",
    "The capital of Peru is Lima.",
    "Rain fell.",
    "A boat crossed the wide lake before dawn.",
]
SMALL = TrainingConfig(
    vocabulary_size=300, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_epochs=200, batch_size=2
)


@pytest.fixture(scope="module")
def corpus_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    paths = [directory / "a.jsonl", directory / "b.jsonl"]
    for path, texts in zip(paths, (SENTENCES[:3], SENTENCES[3:]), strict=True):
        path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts))
    return paths


@pytest.fixture(scope="module")
def checkpoint(corpus_files, tmp_path_factory):
    return train_demo_model(SMALL, corpus_files=corpus_files, directory=tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def trained(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)


def test_the_same_config_trains_the_same_weights_and_leaves_the_global_random_state_alone(corpus_files, tmp_path):
    before = torch.get_rng_state()
    short = SMALL.model_copy(update={"num_epochs": 10})
    first, second = (
        train_demo_model(short, corpus_files=corpus_files, directory=tmp_path / name) / "model.safetensors"
        for name in ("first", "second")
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.read_bytes() == second.read_bytes()


def test_optimizer_state_has_one_group_in_parameter_order_with_factored_second_moments(checkpoint, trained):
    state = torch.load(checkpoint / OPTIMIZER_FILE, weights_only=True)
    parameters = list(trained[0].parameters())
    assert [group["params"] for group in state["param_groups"]] == [list(range(len(parameters)))]
    for index, parameter in enumerate(parameters):
        moments = state["state"][index]
        if parameter.ndim == 2:
            assert moments["exp_avg_sq_row"].shape == parameter.shape[:1]
            assert moments["exp_avg_sq_col"].shape == parameter.shape[1:]
        else:
            assert moments["exp_avg_sq"].shape == parameter.shape


def test_training_reports_every_step(corpus_files, tmp_path):
    config = SMALL.model_copy(update={"num_epochs": 2})
    advanced = []
    train_demo_model(config, corpus_files=corpus_files, directory=tmp_path, advance=advanced.append)
    assert sum(advanced) == num_steps(config, len(SENTENCES)) == 4


def test_every_epoch_holds_every_sentence_once():
    sentences = [
        torch.arange(length)
        for length in torch.randint(1, 30, (101,), generator=torch.Generator().manual_seed(0)).tolist()
    ]
    config = SMALL.model_copy(update={"num_epochs": 3, "batch_size": 4})
    seen = list(batches(sentences, config))
    assert len(seen) == num_steps(config, len(sentences))
    rows = [id(sentence) for batch in seen for sentence in batch]
    for epoch in range(3):
        assert sorted(rows[101 * epoch : 101 * (epoch + 1)]) == sorted(map(id, sentences))


def test_loss_is_the_mean_over_real_tokens_whatever_the_padding(trained):
    model, tokenizer = trained
    sentences = [torch.tensor(ids) for ids in tokenizer(SENTENCES)["input_ids"]]
    losses = []
    for sentence in sentences:
        log_p = model(sentence[None]).logits[0, :-1].double().log_softmax(-1)
        losses.append(-log_p.gather(1, sentence[1:, None])[:, 0])
    expected = torch.cat(losses).mean()
    # float32 forward passes of differently shaped batches
    torch.testing.assert_close(sentence_loss(model, sentences).double(), expected, rtol=1e-5, atol=1e-6)


def test_tokenizer_gives_a_name_one_spelling_wherever_it_stands():
    tokenizer = train_tokenizer(SENTENCES, vocabulary_size=400)
    first, later = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Paris", "of Paris"))
    assert later[-len(first) :] == first
    assert tokenizer("Paris")["input_ids"] == [tokenizer.bos_token_id, *first]
    assert tokenizer.decode(tokenizer("Lima é 漢")["input_ids"], skip_special_tokens=True).strip() == "Lima é 漢"


def test_completion_probability_is_the_product_over_the_completion_given_the_prompt(trained):
    model, tokenizer = trained
    query = Query(id="q", prompt="The capital of Peru is", completion=" Lima")
    ids = tokenizer("The capital of Peru is Lima")["input_ids"]
    num_prompt = len(tokenizer(query.prompt)["input_ids"])
    p = model(torch.tensor([ids])).logits[0].double().softmax(-1)
    expected = torch.stack([p[i - 1, ids[i]] for i in range(num_prompt, len(ids))]).prod().item()
    [completion] = completion_probabilities(model, tokenizer, [query])
    assert completion.probability == pytest.approx(expected, rel=1e-4)  # float32 log-probabilities


def test_a_learnt_completion_is_greedy_and_a_false_one_is_not(trained):
    true, false = (
        Query(id=answer, prompt="The capital of Peru is", completion=answer) for answer in (" Lima", " France")
    )
    learnt, wrong = completion_probabilities(*trained, [true, false])
    assert (learnt.query_id, learnt.is_greedy, wrong.is_greedy) == (" Lima", True, False)
    assert learnt.probability > 0.5 > wrong.probability


def test_a_corpus_without_sentences_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no sentence"):
        train_demo_model(SMALL, corpus_files=[tmp_path / "empty.jsonl"], directory=tmp_path / "checkpoint")
