"""What the tests of the pipeline run on: models small enough for the dense oracle, trained for a few real steps."""

import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from trackstar.tasks.demo.training import TrainingConfig, train_demo_model, train_tokenizer
from trackstar.tasks.models.tokens import tokenize_documents

SUBJECTS = ("The river", "A heron", "My sister", "The old clock")
REMAINDERS = (
    "sleeps under the bridge.",
    "crosses the town at noon, slowly, and never once looks back at the square.",
    "has no name yet.",
    "belongs to Vienna; everybody there agrees.",
    "was painted green.",
)
TEXTS = [f"{subject} {remainder}" for remainder in REMAINDERS for subject in SUBJECTS]
QUERIES = (
    {"id": "q0", "prompt": "The river sleeps under", "completion": " the bridge.", "relevant_ids": ["d0", "d1"]},
    {"id": "q1", "prompt": "My sister belongs to", "completion": " Vienna", "relevant_ids": ["d14"]},
    {"id": "q2", "prompt": "A heron was painted", "completion": " green.", "relevant_ids": ["d17"]},
)
CONTEXT = 32  # of the GPT-2
SHAPE = TrainingConfig(
    vocabulary_size=320, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_epochs=3, batch_size=4
)


def save_llama(directory: Path, *, seed: int = 0) -> Path:
    texts = directory.parent / "training.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = SHAPE.model_copy(update={"seed": seed})
    return train_demo_model(config, corpus_files=[texts], directory=directory)


def save_gpt2(directory: Path, *, tokenizer_of: Path) -> Path:
    """Its context is 32 tokens: every query fits, some of the texts do not."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"n_positions": CONTEXT, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 16}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **no_dropout, **ends))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids in tokenize_documents(tokenizer, TEXTS):
        tokens = torch.tensor([ids[:CONTEXT]])
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    return directory


def save_encoder(directory: Path) -> Path:
    """A random BERT with a tokenizer, as a sentence encoder is saved."""
    tokenizer = train_tokenizer(TEXTS, vocabulary_size=320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_classifier(directory: Path, labels=("contradiction", "neutral", "ENTAILMENT")) -> Path:
    """A random BERT that classifies pairs, with a word-piece tokenizer of its own; it reads 32 tokens."""
    tokenizer = _pair_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            initializer_range=0.5,  # spreads the answers, which of small weights are all alike
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            **shape,
        )
        BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _pair_tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]  # a BERT is told which half a token is of
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
