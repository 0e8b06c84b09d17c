"""The API as a client meets it: the object of ``ask --json``, one sentence for whatever is wrong, and bounds."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import trackstar
from tests.serving.conftest import client_of
from tests.tiny import QUERIES
from trackstar.storage.errors import InputError
from trackstar.storage.sealed import sealed, unsealed
from trackstar.tasks.asking.gradient_scan import Cancelled
from trackstar.tasks.asking.open_index import OpenIndex
from trackstar.tasks.asking.settings import AskConfig
from trackstar.tasks.serving.served_indexes import ServedIndexes, short_names

ASKED = {"prompt": QUERIES[0]["prompt"], "completion": QUERIES[0]["completion"]}


def test_an_answer_is_the_object_that_ask_prints(client, llama_index):
    index = trackstar.open(str(llama_index.path))
    question = {**ASKED, "contrast": " Vienna", "methods": ["trackstar", "bm25"], "top_k": 3}
    expected = index.ask(
        ASKED["prompt"], ASKED["completion"], contrast=" Vienna", methods=["trackstar", "bm25"], top_k=3
    )
    found = client.post("/api/ask", json=question).json()
    expected = json.loads(json.dumps(expected.to_dict()))
    assert list(found) == list(expected)
    assert rounded(found) == rounded(expected)


def rounded(value):
    """Numbers to the places that rounding leaves alone."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value


def test_the_model_is_asked_where_no_completion_is_given(client):
    found = client.post("/api/ask", json={"prompt": ASKED["prompt"], "top_k": 1}).json()
    said = client.post("/api/complete", json={"prompt": ASKED["prompt"]}).json()
    assert found["completion"] == said["completion"] == "".join(token["text"] for token in said["tokens"])
    assert all(0 < token["probability"] <= 1 for token in said["tokens"])


def test_a_document_comes_with_its_neighbours(client):
    found = client.get("/api/documents", params={"id": "d2", "neighbours": 1}).json()
    assert [found["before"][0]["id"], found["document"]["id"], found["after"][0]["id"]] == ["d1", "d2", "d3"]


def test_an_id_that_is_no_document_is_told_in_json(client):
    for id_ in ("../../etc/passwd", "<script>alert(1)</script>", "d0\n", "\u202e", "x" * 3000):
        response = client.get("/api/documents", params={"id": id_})
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/json"
        assert "the index has no document" in response.json()["error"]


@pytest.mark.parametrize(
    ("question", "status", "sentence"),
    [
        ({}, 422, "prompt is missing"),
        ({**ASKED, "top_k": -1}, 422, "top_k is -1"),
        ({**ASKED, "top_n": 3}, 422, "top_n is 3"),
        ({**ASKED, "methods": ["nothing"]}, 400, "'nothing' cannot be asked at once"),
        ({**ASKED, "methods": []}, 400, "name at least one"),
        ({**ASKED, "completion": " "}, 400, "the completion is ' '"),
        ({**ASKED, "contrast": ASKED["completion"]}, 400, "differ in nothing"),
        ({**ASKED, "index": "../other"}, 400, "no index '../other' is served"),
        ({"prompt": "x " * 5000, "completion": " y"}, 400, "context"),
        ({**ASKED, "top_k": 10_001}, 400, "at most 10,000"),
    ],
)
def test_a_wrong_question_is_answered_with_one_sentence(client, question, status, sentence):
    for path in ("/api/ask", "/api/ask/stream"):
        response = client.post(path, json=question)
        told = last_event(response.text) if response.status_code == 200 else response.json()
        assert told.pop("status", response.status_code) == status
        assert list(told) == ["error"]
        assert sentence in told["error"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800", "completion": " x"}', b"null"])
def test_a_body_that_is_no_question_is_told_so(client, body):
    response = client.post("/api/ask", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert list(response.json()) == ["error"]


def test_a_form_of_another_site_is_no_question(client):
    """Only JSON is read, which a form cannot send."""
    body = json.dumps(ASKED)
    assert client.post("/api/ask", content=body, headers={"content-type": "text/plain"}).status_code == 422


def test_a_stream_tells_progress_and_ends_with_the_answer(client):
    response = client.post("/api/ask/stream", json={**ASKED, "top_k": 2})
    assert response.headers["content-type"].startswith("text/event-stream")
    plain = client.post("/api/ask", json={**ASKED, "top_k": 2}).json()
    assert rounded(last_event(response.text)) == rounded(plain)
    assert "event: progress" in response.text


def last_event(text):
    return json.loads(text.strip().split("data: ")[-1])


def test_the_servers_state_is_told(client):
    client.post("/api/ask", json={**ASKED, "top_k": 1})
    client.post("/api/ask", json={**ASKED, "methods": ["nothing"]})
    assert client.get("/health").json() == {"status": "ok"}
    told = client.get("/metrics").text
    assert 'trackstar_answers_total{status="200",what="ask"} 1.0' in told
    assert 'trackstar_answers_total{status="400",what="ask"} 1.0' in told
    assert 'trackstar_index_documents{index="index"} ' in told
    (index,) = client.get("/api/indexes").json()["indexes"]
    assert index["name"] == "index"
    assert "trackstar" in index["methods"]
    assert "mixed" not in index["methods"]


def test_the_api_is_described_without_anything_from_elsewhere(client):
    paths = client.get("/openapi.json").json()["paths"]
    page = client.get("/docs").text
    assert {"/api/ask", "/api/complete", "/api/documents", "/api/indexes", "/health", "/metrics"} <= set(paths)
    assert all(path in page for path in paths)
    for path in ("/docs", "/", "/page/page.js", "/page/page.css", "/page/api.js", "/page/view.js"):
        text = client.get(path).text
        assert "//cdn" not in text
        assert "https://" not in text


# ---- many at once


@pytest.fixture
def slow(monkeypatch):
    """Questions that take until they are let go or given up."""
    go, begun, ended = threading.Event(), threading.Event(), []

    def ask(self, *_, cancelled, **__):
        begun.set()
        while not go.wait(0.01):
            if cancelled():
                ended.append("cancelled")
                raise Cancelled("given up")
        return Answer()

    class Answer:
        def to_dict(self):
            return {"answered": True}

    monkeypatch.setattr(OpenIndex, "ask", ask)
    yield go, begun, ended
    go.set()


def test_a_full_queue_tells_to_wait(served, slow):
    go, begun, _ = slow
    with client_of(served, threads=1, queue=1) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/api/ask", json=ASKED) for _ in range(2)]
        assert begun.wait(10)
        wait_until(lambda: "trackstar_at_desk 2.0" in client.get("/metrics").text)
        refused = client.post("/api/ask", json=ASKED)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "2"
        assert "ask again" in refused.json()["error"]
        assert client.get("/api/documents", params={"id": "d0"}).status_code == 200  # reading has a desk of its own
        go.set()
        assert [future.result().json() for future in waiting] == [{"answered": True}] * 2


def test_a_question_that_takes_too_long_is_given_up(served, slow):
    with client_of(served, timeout_s=0.3) as client:
        response = client.post("/api/ask", json=ASKED)
        assert response.status_code == 504
        told = last_event(client.post("/api/ask/stream", json=ASKED).text)
        assert told["status"] == 504
    wait_until(lambda: slow[2] == ["cancelled"] * 2)


@pytest.mark.parametrize("path", ["/api/ask", "/api/ask/stream"])
def test_a_client_that_goes_away_stops_its_work(address, slow, path):
    _, begun, ended = slow
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + path, json=ASKED, timeout=0.5).read()
    assert begun.is_set()
    wait_until(lambda: ended == ["cancelled"])


def wait_until(holds, *, seconds=15):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_twenty_questions_at_once_are_all_answered_or_told_to_wait(address, served):
    index = served[None].current()
    questions = [(QUERIES[number % len(QUERIES)], number) for number in range(20)]
    expected = {query["id"]: index.ask(query["prompt"], query["completion"], top_k=3) for query in QUERIES}

    def ask(query, number):
        body = {"prompt": query["prompt"], "completion": query["completion"], "top_k": 3}
        return query["id"], httpx.post(f"{address}/api/ask", json=body, timeout=120)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda asked: ask(*asked), questions))
    assert {response.status_code for _, response in answers} <= {200, 429}
    told = [(id_, response.json()) for id_, response in answers if response.status_code == 200]
    assert len(told) >= 6  # two at once and four that wait
    for id_, answer in told:
        assert [found["id"] for found in answer["proponents"]] == [found.id for found in expected[id_].proponents]
        scores = [found.score for found in expected[id_].proponents]
        assert [found["score"] for found in answer["proponents"]] == pytest.approx(scores, rel=1e-3, abs=1e-5)


# ---- indexes that change


def test_an_index_that_is_replaced_is_picked_up_and_nothing_is_written(llama_index, tmp_path):
    path = tmp_path / "index"
    shutil.copytree(str(llama_index.path), path)
    served = ServedIndexes([str(path)], AskConfig(), look_every_s=0)
    before = files(path)
    with client_of(served) as client:
        assert client.post("/api/ask", json={**ASKED, "top_k": 1}).status_code == 200
        assert files(path) == before
        first = served["index"].opened
        described = unsealed((path / "index.json").read_bytes())
        (path / "index.json").write_text("{half")
        assert client.post("/api/ask", json={**ASKED, "top_k": 1}).status_code == 200
        assert served["index"].opened is first
        (path / "index.json").write_bytes(sealed(changed(described)))
        (facts,) = client.get("/api/indexes").json()["indexes"]
        assert facts["name"] == "index"
        assert served["index"].opened is not first
        assert served["index"].num_reopened == 1


def changed(described):
    """The same index, made with other settings as far as anybody can tell."""
    described["corpus"]["shard_size"] += 1
    return described


def files(path):
    return {found.relative_to(path): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def test_an_index_is_called_by_what_tells_it_from_the_others(llama_index):
    assert short_names(["/a/x/index", "/a/y/index"]) == ["x/index", "y/index"]
    assert short_names(["/a/one", "/a/two"]) == ["one", "two"]
    with pytest.raises(InputError, match="given twice"):
        ServedIndexes([str(llama_index.path)] * 2, AskConfig())
