"""One question at a time: scores as of ``attribute``, tokens that add up, nothing written, threads that agree."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

import trackstar
from tests.asking.conftest import attributed, build
from tests.flows.runs import modification_times
from tests.tiny import CONTEXT, QUERIES, TEXTS
from trackstar.storage.errors import InputError, MissingError
from trackstar.storage.layout import RANKING
from trackstar.storage.queries import Query
from trackstar.storage.tables import read_table
from trackstar.storage.writer import unread
from trackstar.tasks.index.contents import write_index
from trackstar.tasks.index.withdrawals import TombstoneRequest, new_withdrawal, write_tombstones
from trackstar.tasks.methods.bm25 import BaselineRequest, rank_by_baseline
from trackstar.tasks.numerics.predicted_tokens import PredictedTokens
from trackstar.tasks.runtime import stage

# of scores that are cosines: float32 products over stores, and the order in which they are summed
SCORE_TOLERANCE = 2e-5
PROMPT, COMPLETION = QUERIES[0]["prompt"], QUERIES[0]["completion"]


def scores(answer, method="trackstar"):
    return {found.id: found.score for found in answer.of(method)}


def assert_same(found, expected, tolerance=SCORE_TOLERANCE):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[id_] for id_ in expected], list(expected.values()), rtol=0, atol=tolerance)


@pytest.mark.parametrize("fixture", ["llama_index", "gpt2_index"])
def test_scores_are_those_of_attribute_with_r_train_alone(fixture, request, tmp_path):
    index = request.getfixturevalue(fixture)
    copied = tmp_path / "index"
    shutil.copytree(str(index.path), copied)
    expected = attributed(copied, [QUERIES[0]], tmp_path, whitening="train")["q0"]
    answer = trackstar.open(index.path).ask(PROMPT, COMPLETION, top_k=0)
    assert_same(scores(answer), expected)
    assert answer.settings["scores"]["trackstar"]["whitening"] == "train"


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("trackstar", {"whitening": "train"}),
        ("no_whitening", {"whitening": "none"}),
        ("trackstar", {"mixing_weight": 0.6}),
        ("trackstar", {"mixing_weight": "auto"}),
    ],
)
def test_an_index_without_r_train_is_asked_with_the_identity_in_its_place(method, settings, flat_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(flat_index.path), copied)
    weight = settings.get("mixing_weight")
    expected = attributed(copied, QUERIES[:1] if weight is None else QUERIES, tmp_path, **settings)["q0"]
    for memory_bytes in (1 << 30, 0):
        answer = trackstar.open(flat_index.path, memory_bytes=memory_bytes).ask(
            PROMPT,
            COMPLETION,
            top_k=0,
            methods=[method],
            background=QUERIES[1:] if weight is not None else None,
            mixing_weight=None if weight == "auto" else weight,
        )
        assert_same(scores(answer, method), expected)
    assert answer.settings["scores"][method]["damping"] is None
    for found in answer.proponents[:4]:
        assert sum(token.share for token in found.tokens) == pytest.approx(found.score, abs=SCORE_TOLERANCE)


def test_damping_has_nothing_to_act_on_where_there_is_no_r_train(flat_index):
    with pytest.raises(InputError, match=r"damping is 0.1, and .* has no R_train that it could be added to"):
        trackstar.open(flat_index.path, damping=0.1)


def test_preparing_an_index_without_r_train_writes_nothing(flat_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(flat_index.path), copied)
    before = modification_times(copied)
    trackstar.open(copied, prepare=True).ask(PROMPT, COMPLETION)
    assert modification_times(copied) == before


def test_no_writer_removes_what_an_answer_is_made_of_while_it_is_made(llama_index):
    held = []

    def look(_):
        with unread(llama_index.path) as is_unread:
            held.append(not is_unread)

    trackstar.open(llama_index.path).ask(PROMPT, COMPLETION, progress=look)
    assert held
    assert all(held)
    with unread(llama_index.path) as is_unread:
        assert is_unread


def test_how_a_question_was_read_is_said_where_it_is_not_as_it_looks(llama_index):
    answer = trackstar.open(llama_index.path).ask(PROMPT, COMPLETION.strip())
    assert any("are read as one word" in warning for warning in answer.warnings)
    assert "are read as one word" in " ".join(str(answer).split())
    assert answer.to_dict()["settings"]["warnings"] == list(answer.warnings)
    assert not trackstar.open(llama_index.path).ask(PROMPT, COMPLETION).warnings


@pytest.mark.parametrize("weight", [None, 0.6])
def test_with_a_background_scores_are_those_of_attribute_on_it_with_the_question_added(weight, llama_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(llama_index.path), copied)
    settings = {} if weight is None else {"mixing_weight": weight}
    expected = attributed(copied, QUERIES, tmp_path, **settings)["q0"]
    background = tmp_path / "background.jsonl"
    background.write_text("".join(json.dumps(query) + "\n" for query in QUERIES[1:]))
    answer = trackstar.open(llama_index.path).ask(
        PROMPT, COMPLETION, top_k=0, background=str(background), mixing_weight=weight
    )
    assert_same(scores(answer), expected)
    assert len(answer.spreads["trackstar"].background_best) == 2


@pytest.mark.parametrize("method", ["no_whitening", "no_unit_norm"])
def test_other_gradient_methods_score_as_attribute_does_with_their_settings(method, llama_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(llama_index.path), copied)
    settings = {"no_whitening": {"whitening": "none"}, "no_unit_norm": {"whitening": "train", "unit_norm": False}}
    expected = attributed(copied, [QUERIES[0]], tmp_path, **settings[method])["q0"]
    answer = trackstar.open(llama_index.path).ask(PROMPT, COMPLETION, top_k=0, methods=[method])
    largest = max(map(abs, expected.values()))
    assert_same(scores(answer, method), expected, tolerance=SCORE_TOLERANCE * max(1.0, largest))


@pytest.mark.parametrize("fixture", ["llama_index", "gpt2_index"])
@pytest.mark.parametrize("method", ["trackstar", "no_whitening", "no_unit_norm"])
@pytest.mark.parametrize("has_background", [False, True])
def test_the_shares_of_a_documents_predicted_tokens_add_up_to_its_score(fixture, method, has_background, request):
    index = trackstar.open(request.getfixturevalue(fixture).path)
    background = QUERIES[1:] if has_background else None
    answer = index.ask(PROMPT, COMPLETION, top_k=4, methods=[method], background=background)
    largest = max(abs(found.score) for found in answer.proponents)
    for found in (*answer.proponents, *answer.opponents):
        assert abs(sum(token.share for token in found.tokens) - found.score) < SCORE_TOLERANCE * max(1.0, largest)
        text = "".join(found.text[token.start : token.stop] for token in found.tokens)
        assert found.text.replace(" ", "").endswith(text.replace(" ", ""))  # all but a first token, never predicted


def test_a_model_without_forward_mode_derivatives_has_the_same_shares_from_a_gradient_for_each_token(
    gpt2_index, monkeypatch
):
    expected = trackstar.open(gpt2_index.path).ask(PROMPT, COMPLETION, top_k=0).proponents

    def refused(*_):
        raise NotImplementedError("You must implement the jvp function")

    monkeypatch.setattr(PredictedTokens, "__call__", refused)
    separate = trackstar.open(gpt2_index.path).ask(PROMPT, COMPLETION, top_k=0).proponents
    assert any(len(found.tokens) > CONTEXT for found in expected)  # more than one window
    for found, other in zip(separate, expected, strict=True):
        assert [token[:2] for token in found.tokens] == [token[:2] for token in other.tokens]
        shares = [[token.share for token in tokens] for tokens in (found.tokens, other.tokens)]
        np.testing.assert_allclose(*shares, atol=SCORE_TOLERANCE * max(map(abs, shares[1])))


def test_bm25_ranks_as_compare_does_and_its_tokens_are_the_words_that_were_found(llama_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(llama_index.path), copied)
    request = BaselineRequest(
        index=str(copied),
        shards=llama_index.shards,
        method="bm25",
        queries=(Query.model_validate(QUERIES[0]),),
        top_k=0,
    )
    table = read_table(stage.build(rank_by_baseline.body, request).path(str(copied)), RANKING)
    expected = dict(table.select("candidate_id", "score").iter_rows())
    for memory_bytes in (1 << 30, 0):  # words held, and texts read
        answer = trackstar.open(llama_index.path, memory_bytes=memory_bytes).ask(
            PROMPT, COMPLETION, top_k=0, methods=["bm25"]
        )
        assert_same(scores(answer, "bm25"), expected, tolerance=1e-12)
        for found in answer.proponents:
            assert sum(token.share for token in found.tokens) == pytest.approx(found.score)
    words = {found.text[token.start : token.stop].lower() for found in answer.proponents for token in found.tokens}
    assert "bridge" in words


def test_a_contrast_asks_about_the_difference_of_the_two_losses(llama_index):
    index = trackstar.open(llama_index.path)
    other = " the town."
    score = {"methods": ["no_unit_norm"], "top_k": 0}
    both = index.ask(PROMPT, COMPLETION, contrast=other, **score)
    one, another = (
        scores(index.ask(PROMPT, completion, **score), "no_unit_norm") for completion in (COMPLETION, other)
    )
    # without norms a score is linear in the query's gradient
    expected = {id_: one[id_] - another[id_] for id_ in one}
    assert_same(scores(both, "no_unit_norm"), expected, tolerance=SCORE_TOLERANCE * max(map(abs, one.values())))
    assert both.contrast_probability == pytest.approx(index.ask(PROMPT, other).probability)
    assert both.to_dict()["contrast"] == other
    assert "contrast" not in index.ask(PROMPT, COMPLETION).to_dict()


def test_without_a_completion_the_models_own_is_taken_and_shown(llama_index):
    index = trackstar.open(llama_index.path)
    said = index.complete(PROMPT)
    answer = index.ask(PROMPT)
    assert answer.completion == said.text == answer.said.text
    assert answer.settings["completed_by_model"]
    assert answer.probability == pytest.approx(said.probability, rel=1e-4)
    assert answer.of("trackstar")[0].score == pytest.approx(index.ask(PROMPT, said.text).of("trackstar")[0].score)


def test_a_completion_ends_with_its_sentence_or_after_so_many_tokens(llama_index):
    index = trackstar.open(llama_index.path)
    said = index.complete(PROMPT, max_tokens=30)
    assert "\n" not in said.text
    assert not said.text.rstrip(".").endswith(".")
    assert len(index.complete(PROMPT, max_tokens=1).tokens) == 1
    assert all(0 < token.probability <= 1 for token in said.tokens)
    assert "".join(said.text[token.start : token.stop] for token in said.tokens) == said.text


def test_nothing_is_written_under_the_index_unless_it_is_to_be_prepared(llama_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(llama_index.path), copied)
    before = modification_times(copied)
    index = trackstar.open(copied)
    index.ask(PROMPT, COMPLETION, methods=["trackstar", "bm25", "no_whitening"])
    index.ask(PROMPT, COMPLETION, background=QUERIES[1:])
    index.rank(QUERIES)
    assert modification_times(copied) == before
    assert not (copied / "factors").exists()
    prepared = trackstar.open(copied, prepare=True)
    assert {"factors", "train_norms", "spectrum"} <= {path.name for path in copied.iterdir()}
    assert_same(scores(prepared.ask(PROMPT, COMPLETION)), scores(index.ask(PROMPT, COMPLETION)))


def test_a_store_that_is_prepared_is_read_with_no_memory_at_all_and_one_that_is_not_says_what_to_do(
    llama_index, gpt2_index
):
    small = trackstar.open(gpt2_index.path, memory_bytes=0)
    assert_same(scores(small.ask(PROMPT, COMPLETION)), scores(trackstar.open(gpt2_index.path).ask(PROMPT, COMPLETION)))
    assert small.memory.used_bytes == 0
    with pytest.raises(InputError, match="do not fit in memory_bytes=0; raise it, or write them to the index once"):
        trackstar.open(llama_index.path, memory_bytes=0).ask(PROMPT, COMPLETION)


def test_what_is_kept_stays_below_the_setting(gpt2_index):
    limit = 20_000
    index = trackstar.open(gpt2_index.path, memory_bytes=limit)
    for query in QUERIES:
        index.ask(query["prompt"], query["completion"], methods=["trackstar", "bm25"])
        assert 0 < index.memory.used_bytes <= limit


def test_several_threads_get_the_answers_that_one_would_get(llama_index):
    index = trackstar.open(llama_index.path)
    asked = [(query["prompt"], query["completion"]) for query in QUERIES] * 4
    alone = [index.ask(*question, top_k=3, methods=["trackstar", "bm25"]).to_dict() for question in asked[:3]]
    fresh = trackstar.open(llama_index.path)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda q: fresh.ask(*q, top_k=3, methods=["trackstar", "bm25"]).to_dict(), asked))
    for number, answer in enumerate(together):
        expected = alone[number % 3]
        assert [p["id"] for p in answer["proponents"]] == [p["id"] for p in expected["proponents"]]
        np.testing.assert_allclose(
            [p["score"] for p in answer["proponents"]],
            [p["score"] for p in expected["proponents"]],
            atol=SCORE_TOLERANCE,
        )


def test_progress_is_told_and_a_reader_who_goes_away_stops_the_work(llama_index):
    index, told = trackstar.open(llama_index.path), []
    index.ask(PROMPT, COMPLETION, progress=told.append)
    last = [progress for progress in told if progress.stage == "scores"][-1]
    assert last.done == last.total == len(TEXTS)
    assert {"norms", "scores", "tokens"} <= {progress.stage for progress in told}
    gone = threading.Event()

    def look(progress):
        if progress.stage == "scores":
            assert index.leaders(progress.found)[0][1] >= index.leaders(progress.found)[-1][1]
            gone.set()

    with pytest.raises(trackstar.Cancelled):
        index.ask(PROMPT, COMPLETION, progress=look, cancelled=gone.is_set)
    assert index.ask(PROMPT, COMPLETION).proponents


def test_ranking_several_queries_is_what_attribute_gives(llama_index, tmp_path):
    copied = tmp_path / "index"
    shutil.copytree(str(llama_index.path), copied)
    expected = attributed(copied, QUERIES, tmp_path)
    frame = trackstar.open(llama_index.path).rank(QUERIES, top_k=0).frame().filter(pl.col("kind") == "proponent")
    for query_id, of_query in expected.items():
        rows = frame.filter(pl.col("query_id") == query_id)
        assert_same(dict(rows.select("candidate_id", "score").iter_rows()), of_query)
    assert frame["text"].to_list() == [TEXTS[int(id_[1:])] for id_ in frame["candidate_id"]]


def test_documents_come_by_id_with_where_they_are_from_and_with_their_neighbours(llama, asked_corpus, tmp_path):
    found = build(tmp_path / "index", llama, asked_corpus, corpus={
        "paths": [str(asked_corpus)], "shard_size": 7, "extra_columns": ("source",)
    })  # fmt: skip
    index = trackstar.open(found.path)
    documents = index.documents(["d12", "d3"])
    assert [document.text for document in documents] == [TEXTS[12], TEXTS[3]]
    assert (documents[0].file, documents[0].row, documents[0].columns) == ("part-1.jsonl", 2, {"source": "part 0"})
    assert documents.frame().columns == ["id", "text", "file", "row", "source"]
    assert [document.id for document in index.neighbours("d3", count=1)] == ["d2", "d3", "d4"]
    with pytest.raises(InputError, match="no document 'nothing', or it was withdrawn"):
        index.documents(["nothing"])


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"methods": ["grad_dot"]}, "'grad_dot' cannot be asked at once; choose among trackstar, mixed"),
        ({"methods": ["dense"]}, "needs a sentence encoder"),
        ({"methods": []}, "name at least one"),
        ({"methods": ["bm25", "bm25"]}, "each once"),
        ({"methods": ["mixed"]}, "mixes in R_eval, which one question has not; give a background"),
        ({"mixing_weight": 0.5}, "one question alone has no R_eval worth mixing in"),
        ({"completion": "  "}, "the completion is '  '; give what the model says after the prompt"),
        ({"contrast": ""}, "the completion is ''"),
        ({"contrast": COMPLETION}, "differ in nothing"),
        ({"prompt": "river " * 4000}, "tokens long and the model's context"),
        ({"background": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_an_impossible_question_is_one_clear_sentence(question, sentence, llama_index):
    index = trackstar.open(llama_index.path)
    arguments = {"prompt": PROMPT, "completion": COMPLETION, **question}
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        index.ask(arguments.pop("prompt"), arguments.pop("completion"), **arguments)


def test_what_is_no_index_or_has_another_checkpoint_by_now_is_refused(llama, asked_corpus, tmp_path):
    with pytest.raises(MissingError, match="holds no finished index"):
        trackstar.open(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(llama, checkpoint)
    found = build(tmp_path / "index", checkpoint, asked_corpus)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "added": 1}))
    with pytest.raises(InputError, match="has changed since"):
        trackstar.open(found.path).ask(PROMPT, COMPLETION)


def test_withdrawn_documents_take_no_part(llama, asked_corpus, tmp_path):
    found = build(tmp_path / "index", llama, asked_corpus)
    best = trackstar.open(found.path).ask(PROMPT, COMPLETION).proponents[0].id
    withdrawal = new_withdrawal(
        [best], index=str(found.path), shards=found.shards, tombstones=None, at="2026-01-01T00:00:00+00:00", reason=""
    )
    request = TombstoneRequest(index=str(found.path), previous=None, withdrawal=withdrawal)
    tombstones = stage.build(write_tombstones.body, request)
    write_index(found.model_copy(update={"tombstones": tombstones, "num_withdrawn": 1}))
    index = trackstar.open(found.path)
    for method in ("trackstar", "bm25", "no_whitening"):
        answer = index.ask(PROMPT, COMPLETION, methods=[method], top_k=0)
        assert len(answer.proponents) == len(TEXTS) - 1
        assert best not in {found.id for found in answer.proponents}
    with pytest.raises(InputError, match="withdrawn"):
        index.documents([best])
