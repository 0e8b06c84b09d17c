"""Real tokenizers of every kind, trained on a few sentences: the same text in tokens that hold different characters."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "The lantern in the lane is Lima, and the capital of Peru is Lima.",
    "  indented\n\n    text   with spaces \n",
    "東京は日本の首都。 Thủ đô là Hà Nội. déjà vu e\u0301 ﬁne 😀 🎉",
)
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(*, trim_offsets=False, use_regex=True, add_prefix_space=False, normalizer=None, roberta=False):
    """GPT-2's kind; ``use_regex=False`` lets tokens reach across spaces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(backend, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, **_options([BOS, EOS])))
    trim = {"trim_offsets": trim_offsets, "add_prefix_space": add_prefix_space}
    if roberta:
        backend.post_processor = processors.RobertaProcessing((EOS, 1), (BOS, 0), **trim)
        return _wrapped(backend)
    begin = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(**trim), begin])
    return _wrapped(backend)


def metaspace(scheme):
    """SentencePiece's kind as a pre-tokenizer; unknown characters become one token."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    options = _options([UNKNOWN, BOS, EOS])
    _train(backend, trainers.UnigramTrainer(vocab_size=160, unk_token=UNKNOWN, **options))
    return _with_ends(backend)


def sentence_piece(normalizer=None):
    """Llama's kind: spaces become ▁ in the normalizer, and characters it does not know three or four bytes."""
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizer, *steps] if normalizer else steps)
    letters = sorted(set("▁" + "".join(SENTENCES[0])) - {" "})
    merges = [("▁", "L"), ("t", "h"), ("l", "a"), ("la", "n"), ("▁", "la"), ("▁", "lan"), ("i", "s"), ("▁", "is")]
    words = [UNKNOWN, BOS, EOS, *BYTES, *letters, *(left + right for left, right in merges)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    backend.model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    backend.add_special_tokens([UNKNOWN, BOS, EOS])
    return _with_ends(backend)


def word_piece(normalizer=None):
    """BERT's kind: white space is in no token, case and accents are gone."""
    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.normalizer = normalizer or normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train(backend, trainers.WordPieceTrainer(vocab_size=160, **_options([UNKNOWN, BOS, EOS])))
    return _with_ends(backend)


def _options(special_tokens):
    return {"special_tokens": special_tokens, "show_progress": False}


def _train(backend, trainer):
    backend.train_from_iterator(SENTENCES * 4, trainer)


def _with_ends(backend):
    """Special tokens before and after every text."""
    ends = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    return _wrapped(backend)


def _wrapped(backend):
    backend.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
