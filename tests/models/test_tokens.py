import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.tokenizers_of import BOS, EOS, Tokenizer, byte_level, metaspace, sentence_piece, word_piece
from trackstar.storage.errors import InputError
from trackstar.storage.queries import Query
from trackstar.tasks.models.query_warnings import Kind, sentence, summary
from trackstar.tasks.models.tokens import _Bare, tokenize_documents, tokenize_queries, tokenize_query

ACCENTS_OFF = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
TOKENIZERS = {
    "byte level": byte_level(),
    "byte level, trimmed": byte_level(trim_offsets=True),
    "byte level across spaces": byte_level(use_regex=False),
    "byte level across spaces, trimmed": byte_level(use_regex=False, trim_offsets=True),
    "byte level with a space before": byte_level(add_prefix_space=True),
    "byte level with a space before, trimmed": byte_level(add_prefix_space=True, trim_offsets=True),
    "RoBERTa": byte_level(roberta=True),
    "RoBERTa, trimmed": byte_level(roberta=True, trim_offsets=True),
    "composing": byte_level(normalizer=normalizers.NFC(), trim_offsets=True),
    "NFKC": byte_level(normalizer=normalizers.NFKC()),
    "Metaspace, always": metaspace("always"),
    "Metaspace, first": metaspace("first"),
    "Metaspace, never": metaspace("never"),
    "SentencePiece": sentence_piece(),
    "SentencePiece, NFKC": sentence_piece(normalizers.NFKC()),
    "BERT": word_piece(),
    "accents stripped": word_piece(normalizers.Sequence(ACCENTS_OFF)),
}
TRIMMED = {name: name.removesuffix(", trimmed") for name in TOKENIZERS if name.endswith(", trimmed")}
EVERY = pytest.mark.parametrize("name", TOKENIZERS)
WORDS = ("The", "lan", "tern", " is", "Lima", "a", "19", ".", " ", "  ", "\n", "\n\n", "\t")
CHARACTERS = ("e", "\u0301", "é", "ﬁ", "İ", "Ｌ", "😀", "👩\u200d👧", "東京", "は", "ᄀ", "ᅡ", "\u200b", "\u00a0")
PARTS = st.sampled_from([*WORDS, *CHARACTERS, BOS, EOS, "<|user|>"])
TEXTS = st.lists(PARTS, max_size=6).map("".join)
PAIRS = given(prompt=TEXTS, completion=TEXTS)
THOROUGH = settings(deadline=None, max_examples=100)


def asked(prompt, completion):
    return Query(id="q", prompt=prompt, completion=completion)


def read(tokenizer, prompt, completion):
    """The tokens of the query; an example whose completion has none, or is white space alone, is none."""
    assume(completion.strip())
    try:
        return tokenize_query(tokenizer, asked(prompt, completion))
    except InputError:
        assume(False)


def sides(name, prompt, completion):
    tokenizer, tokens = TOKENIZERS[name], tokenize_query(TOKENIZERS[name], asked(prompt, completion))
    written = tokenizer.convert_ids_to_tokens(tokens.ids)
    return written[: tokens.completion_start], written[tokens.completion_start :]


def kinds(name, prompt, completion):
    return [warning.kind for warning in tokenize_query(TOKENIZERS[name], asked(prompt, completion)).warnings]


@EVERY
@PAIRS
@THOROUGH
def test_the_ids_are_those_of_prompt_and_completion_tokenized_together(name, prompt, completion):
    tokens = read(TOKENIZERS[name], prompt, completion)
    whole = TOKENIZERS[name](prompt + completion, return_special_tokens_mask=True)
    while whole["special_tokens_mask"].pop():
        whole["input_ids"].pop()
    assert tokens.ids == whole["input_ids"]
    assert 0 < tokens.completion_start < len(tokens.ids)


@pytest.mark.parametrize("name", TRIMMED)
@PAIRS
@THOROUGH
def test_tokenizers_that_differ_in_trim_offsets_alone_agree_on_the_border_and_its_warnings(name, prompt, completion):
    trimmed, whole = (read(TOKENIZERS[of], prompt, completion) for of in (name, TRIMMED[name]))
    assert trimmed == whole


def num_bytes(token):
    """Of the text that a token of these tokenizers is written for."""
    if token in (BOS, EOS, "<|user|>"):
        return len(token)
    if token.startswith("<0x"):
        return 1
    return len(token.replace("▁", " "))  # byte-level: a character a byte; SentencePiece: ASCII


@pytest.mark.parametrize("name", ["byte level", "byte level across spaces", "SentencePiece"])
@PAIRS
@THOROUGH
def test_the_completion_is_the_tokens_that_hold_any_of_its_bytes_and_no_others(name, prompt, completion):
    is_sentence_piece = name == "SentencePiece"
    if is_sentence_piece:  # it invents a space after each special token, too
        prompt, completion = (text.replace("<", "(") for text in (prompt, completion))
    tokens = read(TOKENIZERS[name], prompt, completion)
    end = -1 if is_sentence_piece and prompt else 0  # the space that it invents holds no character of the text
    start = 1
    for token in TOKENIZERS[name].convert_ids_to_tokens(tokens.ids[1:]):
        end += num_bytes(token)
        if end > len(prompt.encode()):
            break
        start += 1
    assert tokens.completion_start == start
    before = end - num_bytes(token)
    assert (Kind.CROSSING in [warning.kind for warning in tokens.warnings]) == (before < len(prompt.encode()))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if "across" not in name and "Metaspace" not in name])
@given(prompt=st.lists(st.sampled_from(["The", "lan", "is", "Lima."]), min_size=1).map(" ".join))
@THOROUGH
def test_a_completion_on_a_line_of_its_own_begins_after_the_prompts_tokens(name, prompt):
    tokenizer = TOKENIZERS[name]
    alone = [id for id in tokenizer(prompt)["input_ids"] if id != tokenizer.eos_token_id]
    alone = [*alone[:1], *(id for id in alone[1:] if id != tokenizer.bos_token_id)]
    tokens = tokenize_query(tokenizer, asked(prompt, "\nLima"))
    assert tokens.ids[: tokens.completion_start] == alone
    assert tokens.warnings == ()


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "before", "after"),
    [
        ("byte level, trimmed", "The lan", "tern", [BOS, "The"], ["Ġlantern"]),
        ("Metaspace, always", "The lan", "tern", [BOS, "▁Th", "e▁lan"], ["t", "er", "n"]),
        ("BERT", "The lan", "tern", [BOS, "the"], ["lantern"]),
        ("byte level, trimmed", "The capital is ", "Lima", [BOS, "The", "Ġcapital", "Ġis"], ["ĠLima"]),
        ("byte level", "The capital is ", "Lima", [BOS, "The", "Ġcapital", "Ġis"], ["ĠLima"]),
        ("BERT", "The capital is ", "Lima", [BOS, "the", "capital", "is"], ["lima"]),
        ("byte level, trimmed", "The", "  Lima", [BOS, "The"], ["Ġ", "ĠLima"]),
        (
            "SentencePiece",
            "is😀",
            "😀",
            [BOS, "▁is", *["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]],
            ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"],
        ),
        ("composing", "e", "\u0301", [BOS], ["Ã©"]),
        ("SentencePiece", "", "Lima", [BOS], ["▁L", "i", "m", "a"]),
        ("Metaspace, always", "a" + BOS, "Lima", [BOS, "▁", "a", BOS], ["▁", "L", "i", "m", "a"]),
        ("BERT", "The", " \u00a0Lima ", [BOS, "the"], ["lima"]),
    ],
)
def test_the_border_is_where_the_completions_first_character_is(name, prompt, completion, before, after):
    assert sides(name, prompt, completion) == (before, after)


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "expected"),
    [
        ("byte level", "The capital is", " Lima", []),
        ("byte level", "The capital is", "Lima", [Kind.ONE_WORD]),
        ("byte level", "e\u0301", "Lima", [Kind.ONE_WORD]),
        ("byte level", "is:", "Lima", []),
        ("byte level", "is\n", "Lima", []),
        ("byte level", "19", "84", []),
        ("byte level", "", "Lima", []),
        ("SentencePiece", "首都は", "東京", []),
        ("byte level", "The capital is ", "Lima", [Kind.CROSSING]),
        ("BERT", "The capital is ", "Lima", []),
        ("composing", "e", "\u0301", [Kind.CROSSING]),
        ("accents stripped", "e", "\u0301 Lima", []),
        ("byte level", BOS + "The", " Lima", [Kind.TWICE]),
        ("byte level", "The" + BOS, " Lima", [Kind.SPELLED]),
        ("byte level", "<|user|>The", " Lima" + EOS, [Kind.SPELLED, Kind.SPELLED]),
        ("SentencePiece", "<unk> is", " Lima", [Kind.SPELLED]),
        ("Metaspace, never", "☃", " Lima", []),
    ],
)
def test_what_is_not_what_it_looks_like_gets_a_warning(name, prompt, completion, expected):
    assert kinds(name, prompt, completion) == expected


def test_a_prompt_that_spells_the_first_token_is_read_as_it_is_written():
    assert sides("byte level", BOS + "The", " Lima")[0] == [BOS, BOS, "The"]


def test_special_tokens_that_are_to_be_split_are_text_and_no_warning():
    tokenizer = byte_level()
    tokenizer.split_special_tokens = True
    tokens = tokenize_query(tokenizer, asked(EOS + "The", " Lima" + EOS))
    assert tokenizer.eos_token_id not in tokens.ids
    assert tokens.warnings == ()


def test_a_text_without_special_tokens_is_predicted_from_the_beginning_of_text_token():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alone, joined = tokenize_queries(tokenizer, [asked("", " Lima"), asked("The lan", "tern")])
    assert alone.completion_start == joined.completion_start == 1
    assert alone.ids == [tokenizer.bos_token_id, *tokenizer(" Lima")["input_ids"]]
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="'q' has nothing before its completion"):
        tokenize_query(tokenizer, asked("", " Lima"))


@pytest.mark.parametrize("completion", ["\u200d", " \u0301", "\x00"])
def test_a_completion_whose_characters_are_in_no_token_is_refused(completion):
    with pytest.raises(InputError, match="without tokens; give it some text"):
        tokenize_query(TOKENIZERS["BERT"], asked("The", completion))


def test_a_tokenizer_that_reads_a_text_otherwise_than_its_parts_is_refused(monkeypatch):
    tokenizer, other = TOKENIZERS["BERT"], Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    other.pre_tokenizer = WhitespaceSplit()
    monkeypatch.setattr("trackstar.tasks.models.tokens.without_post_processor", lambda _: _Bare(other, frozenset()))
    with pytest.raises(InputError, match="query 'q' otherwise than its tokenizer"):
        tokenize_query(tokenizer, asked("The capital is", " Lima"))


def test_documents_have_the_special_tokens_that_the_tokenizer_adds():
    tokenizer = TOKENIZERS["BERT"]
    texts = ["The lantern", "", f"{BOS} Lima"]
    assert tokenize_documents(tokenizer, texts) == [tokenizer(text)["input_ids"] for text in texts]
    assert tokenize_documents(tokenizer, [""]) == [[tokenizer.bos_token_id, tokenizer.eos_token_id]]


def test_a_warning_names_what_it_is_about_and_the_summary_of_a_set_stays_short():
    tokenizer = TOKENIZERS["byte level"]
    queries = [Query(id=f"q{number}\x1b[31m", prompt="The capital is ", completion="Lima") for number in range(1000)]
    queries.append(Query(id="last", prompt=BOS + "The", completion="Lima"))
    tokens = tokenize_queries(tokenizer, queries)
    assert [sentence(warning) for warning in tokens[-1].warnings] == [
        f"'{BOS}': {Kind.TWICE}",
        f"'{BOS}The|Lima': {Kind.ONE_WORD}",
    ]
    said = summary({query.id: of.warnings for query, of in zip(queries, tokens, strict=True)})
    assert said == [
        f"query 'q0\\x1b[31m' at ' Lima', query 'q1\\x1b[31m' at ' Lima', query 'q2\\x1b[31m' at ' Lima' and 997 more: "
        f"{Kind.CROSSING}",
        f"query 'last' at '{BOS}The|Lima': {Kind.ONE_WORD}",
        f"query 'last' at '{BOS}': {Kind.TWICE}",
    ]
    assert summary({"q": ()}) == []
