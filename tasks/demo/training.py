"""A small decoder-only language model, trained from scratch on a corpus, left behind as an ordinary checkpoint.

DIR/config.json, model.safetensors        the model, a Llama
DIR/tokenizer.json, tokenizer_config.json byte-level BPE learnt from the corpus; every text begins with <s>
DIR/optimizer.pt                          Adafactor's state: the factors of the second moment, one parameter group
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import Adafactor, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.demo.settings import TrainingConfig
from trackstar.tasks.models.tokens import tokenize_query

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100  # the label that cross entropy skips
OPTIMIZER_FILE = "optimizer.pt"
BATCHES_PER_POOL = 16  # sentences are sorted by length within pools, so batches differ but carry little padding


@dataclass(frozen=True)
class Completion:
    """How well a model answers one query."""

    query_id: str
    probability: float
    is_greedy: bool


def train_demo_model(
    config: TrainingConfig,
    *,
    corpus_files: Sequence[Path],
    directory: Path,
    advance: Callable[[int], None] = lambda num_steps: None,
) -> Path:
    """Minimise the next-token loss on the corpus and save the checkpoint; the global random state stays as it was.

    Args:
        advance: Called after every step with the number of steps done since the last call.

    Raises:
        InputError: The corpus holds no sentence.
    """
    texts = read_texts(corpus_files)
    tokenizer = train_tokenizer(texts, vocabulary_size=config.vocabulary_size)
    sentences = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    model = new_model(config, tokenizer)
    optimizer = Adafactor(model.parameters(), lr=config.learning_rate, scale_parameter=False, relative_step=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, len(texts)))
    for batch in batches(sentences, config):
        take_step(model, batch, optimizer)
        schedule.step()
        advance(1)
    save_checkpoint(model.eval(), tokenizer, optimizer, directory)
    return directory


def read_texts(corpus_files: Sequence[Path]) -> list[str]:
    texts = [json.loads(line)["text"] for path in corpus_files for line in path.read_text("utf-8").splitlines()]
    if not texts:
        raise InputError(f"no sentence in {[str(path) for path in corpus_files]}: give JSON Lines with a `text` each")
    return texts


def train_tokenizer(texts: Sequence[str], *, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a space is put before the first word, so a name is the same token wherever it stands."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def new_model(config: TrainingConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights that depend on the seed alone."""
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape).train()


def num_steps(config: TrainingConfig, num_sentences: int) -> int:
    return config.num_epochs * math.ceil(num_sentences / config.batch_size)


def learning_rate_factor(config: TrainingConfig, step: int, num_sentences: int) -> float:
    total = num_steps(config, num_sentences)
    num_warmup = config.warmup_fraction * total
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (total - num_warmup)))


def batches(sentences: Sequence[Tensor], config: TrainingConfig) -> Iterator[list[Tensor]]:
    """Every sentence once per epoch, in batches of similar length."""
    generator = torch.Generator().manual_seed(config.seed)
    pool_size = BATCHES_PER_POOL * config.batch_size
    for _ in range(config.num_epochs):
        order = torch.randperm(len(sentences), generator=generator).tolist()
        pools = (order[start : start + pool_size] for start in range(0, len(order), pool_size))
        ordered = [row for pool in pools for row in sorted(pool, key=lambda row: len(sentences[row]))]
        starts = torch.arange(0, len(ordered), config.batch_size)
        for start in starts[torch.randperm(len(starts), generator=generator)].tolist():
            yield [sentences[row] for row in ordered[start : start + config.batch_size]]


def take_step(model: LlamaForCausalLM, batch: list[Tensor], optimizer: Adafactor) -> None:
    """One step down the gradient of this batch alone; Adafactor bounds the size of its updates itself."""
    sentence_loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def sentence_loss(model: LlamaForCausalLM, batch: list[Tensor]) -> Tensor:
    """Mean next-token loss over the tokens of a batch, padded on the right; padding counts nowhere."""
    lengths = torch.tensor([len(sentence) for sentence in batch])
    tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=model.config.pad_token_id)
    is_token = torch.arange(tokens.shape[1]) < lengths[:, None]
    return model(tokens, attention_mask=is_token.long(), labels=tokens.masked_fill(~is_token, IGNORED)).loss


def save_checkpoint(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, optimizer: Adafactor, directory: Path
) -> None:
    with _without_progress_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    torch.save(optimizer.state_dict(), directory / OPTIMIZER_FILE)


@torch.no_grad()
def completion_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query]
) -> list[Completion]:
    """p(completion | prompt) of each query, and whether greedy decoding would write the completion."""
    return [_completion(model, tokenizer, query) for query in queries]


def _completion(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, query: Query) -> Completion:
    ids, start, _ = tokenize_query(tokenizer, query)
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
    answer = torch.tensor(ids[start:])
    log_p = logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    return Completion(query.id, log_p.exp().item(), bool((logits.argmax(-1) == answer).all()))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for a checkpoint's shards, across whatever progress the caller shows."""
    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()
