"""What was trained on is what is traced: tokens and masks of documents, and their gradients against autograd."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trackstar.storage.errors import InputError
from trackstar.storage.reading import Reading
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.document_tokens import kept_tokens, offsets, read_tokens, with_tokens
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig, model_blocks

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "The river?"},
    {"role": "assistant", "content": "It sleeps."},
    {"role": "user", "content": "A heron?"},
    {"role": "assistant", "content": "Painted green."},
]


@pytest.fixture
def tokenizer(llama):
    return AutoTokenizer.from_pretrained(llama)


def frame(*records, reading=None):
    contents = [(reading or Reading()).content_of(record) for record in records]
    return pl.DataFrame(contents, schema={"text": pl.String, "content_json": pl.String}, orient="row")


def predicted(tokenizer, found):
    return tokenizer.decode([token for token, is_target in zip(found.ids, found.targets, strict=True) if is_target])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_the_loss_of_a_chat_is_on_the_turns_of_the_assistant(tokenizer, template):
    tokenizer.chat_template = template
    (found,) = read_tokens(tokenizer, frame({"messages": CHAT}))
    assert found.reason is None
    assert found.text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert found.ids == tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert predicted(tokenizer, found) == "It sleeps.<|end|>\nPainted green.<|end|>\n"


def test_a_template_that_rewrites_turns_sets_the_chat_aside(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    (found,) = read_tokens(tokenizer, frame({"messages": CHAT}))
    assert "writes a turn otherwise" in found.reason


def test_chats_without_a_template_are_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no one chat template"):
        read_tokens(tokenizer, frame({"messages": CHAT}))


def test_the_loss_of_a_pair_is_on_the_completion(tokenizer):
    (found,) = read_tokens(tokenizer, frame({"prompt": "The river sleeps", "completion": " under the bridge."}))
    assert found.ids == tokenizer("The river sleeps under the bridge.")["input_ids"]
    assert predicted(tokenizer, found).startswith(" under the bridge.")


def test_the_loss_of_a_pair_of_messages_is_on_the_completion(tokenizer):
    tokenizer.chat_template = CHATML
    (found,) = read_tokens(tokenizer, frame({"prompt": CHAT[:3], "completion": CHAT[3:]}))
    assert predicted(tokenizer, found) == "Painted green.<|end|>\n"


@pytest.mark.parametrize(
    ("special_tokens", "before", "after"), [("none", 0, 0), ("bos", 1, 0), ("eos", 0, 1), ("bos_eos", 1, 1)]
)
@pytest.mark.parametrize("record", [{"text": "The river"}, {"prompt": "The", "completion": " river"}])
def test_special_tokens_are_those_that_were_chosen(tokenizer, special_tokens, before, after, record):
    (found,) = read_tokens(tokenizer, frame(record), special_tokens=special_tokens)
    bare = tokenizer("The river", add_special_tokens=False)["input_ids"]
    assert found.ids == [tokenizer.bos_token_id] * before + bare + [tokenizer.eos_token_id] * after
    if "prompt" in record:
        num_prompt = len(tokenizer("The", add_special_tokens=False)["input_ids"]) + before
        assert found.targets.tolist() == [place >= num_prompt for place in range(len(found.ids))]
    else:
        assert found.targets[1:].all()


def test_given_tokens_count_where_labels_and_masks_leave_them(tokenizer):
    ids = [5, 6, 7, 8, 9]
    rows = [
        {"input_ids": ids, "labels": [-100, -100, 7, 8, 9]},
        {"input_ids": ids, "loss_mask": [0, 1, 0, 1, 1]},
        {"input_ids": ids, "attention_mask": [0, 1, 1, 1, 0]},
        {"input_ids": "[5, 6]"},
        {"input_ids": ids, "labels": [-100, 6, 3, 8, 9]},
        {"input_ids": ids, "loss_mask": [1]},
        {"input_ids": [5, 10**6]},
    ]
    found = read_tokens(tokenizer, frame(*rows), vocabulary_size=len(tokenizer))
    assert [row.targets.tolist() for row in found[:4]] == [
        [False, False, True, True, True],
        [False, True, False, True, True],
        [True] * 3,
        [True] * 2,
    ]
    assert found[2].ids == [6, 7, 8]
    reasons = [row.reason for row in found[4:]]
    assert "labels differ from input_ids at token 2" in reasons[0]
    assert reasons[1] == "loss_mask has 1 entries, and input_ids 5"
    assert reasons[2] == f"token id 1000000 is outside the model's vocabulary of {len(tokenizer)}"


def test_kept_tokens_are_those_that_were_read(tokenizer):
    documents = frame({"text": "The river"}, {"prompt": "The", "completion": " river"}, {"input_ids": [5, 6]})
    read = read_tokens(tokenizer, documents)
    kept = kept_tokens(tokenizer, with_tokens(documents, read))
    for before, after in zip(read, kept, strict=True):
        assert (before.ids, before.text) == (after.ids, after.text)
        assert before.num_targets == after.num_targets
    places = offsets(tokenizer, kept[1])
    assert "".join(kept[1].text[start:stop] for start, stop in places) == "The river"


def test_masked_gradients_are_those_of_autograd(llama, tmp_path):
    checkpoint = shutil.copytree(llama, tmp_path / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = CHATML
    rows = [
        {"messages": CHAT},
        {"prompt": "The river sleeps", "completion": " under the bridge."},
        {"input_ids": list(range(5, 45)), "labels": [-100] * 10 + list(range(15, 30)) + [-100] * 15},
    ]
    found = read_tokens(tokenizer, frame(*rows))
    model = ModelConfig(device="cpu", dtype="float64", context_tokens=16)  # several windows, one without a target
    gradient = GradientConfig(projection="none", correction="none", num_layer_blocks=1)
    spec = EngineSpec(
        index=str(tmp_path / "i"),
        checkpoint=read_checkpoint(str(checkpoint)),
        model=model,
        gradient=gradient,
        second_moment=None,
    )
    engine = Engine(spec)
    losses, vectors = engine.gradients([row.ids for row in found], first_targets=[row.targets for row in found])
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    blocks = model_blocks(reference, gradient)
    for number, row in enumerate(found):
        reference.zero_grad()
        total = 0.0
        for start in range(0, len(row.ids) - 1, 15):
            ids = torch.tensor([row.ids[start : start + 16]])
            labels = ids.masked_fill(~torch.from_numpy(row.targets[None, start : start + 16]), -100)
            logits = reference(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
        total.backward()
        assert losses[number] == pytest.approx(total.item(), rel=1e-6)
        for name, matrices in blocks.items():
            expected = np.concatenate(
                [m.part_of(reference.get_parameter(m.parameter).grad).flatten() for m in matrices]
            )
            np.testing.assert_allclose(vectors[name][number], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_reading_is_told_by_what_differs_from_the_default():
    assert Reading().identity() == {}
    assert Reading(format="chat", special_tokens="bos").identity() == {"format": "chat", "special_tokens": "bos"}
    assert json.loads(Reading().content_of({"messages": CHAT}).source) == {"messages": CHAT}
