"""Who may ask: this machine alone without a token, and with one whoever brings it."""

import re
import sys

import pytest

from tests.serving.conftest import client_of
from tests.serving.test_api import ASKED
from trackstar.flows.cli import commands as cli
from trackstar.tasks.serving.gate import is_loopback

TOKEN = "correct-horse-battery"
FREE = ("/", "/docs", "/openapi.json", "/health", "/page/page.js")
GUARDED = ("/api/indexes", "/api/documents?id=d0", "/metrics")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:80", "LOCALHOST:1", "127.1.2.3"])
def test_names_of_this_machine_are_answered(served, host):
    with client_of(served) as client:
        assert client.get("/api/indexes", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8765", "127.0.0.1@evil.example", "", "192.168.1.2"],
)
def test_a_name_that_was_pointed_here_is_not(client, host):
    for path in (*FREE, *GUARDED):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 403
        assert "only names of this machine" in response.json()["error"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:8765"])
def test_a_page_of_another_origin_is_not_answered(client, origin):
    assert client.post("/api/ask", json=ASKED, headers={"origin": origin}).status_code == 403
    assert client.get("/api/indexes", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_the_servers_own_page_is_answered(client):
    headers = {"origin": "http://localhost:8765", "sec-fetch-site": "same-origin"}
    assert client.post("/api/complete", json={"prompt": "The"}, headers=headers).status_code == 200


def test_with_a_token_data_is_for_whoever_brings_it(served):
    with client_of(served, host="index.example", token=TOKEN) as client:
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer "}):
            for path in GUARDED:
                response = client.get(path, headers=wrong)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
        for path in (*FREE, *GUARDED):
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert all(client.get(path).status_code == 200 for path in FREE)


def test_every_answer_carries_the_headers_that_keep_it_to_itself(client):
    for path in (*FREE, *GUARDED, "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_a_page_has_no_inline_script_and_no_inline_style(client):
    for path in ("/", "/docs"):
        page = client.get(path).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page)


def test_a_request_that_is_too_large_is_refused_before_it_is_read(served):
    with client_of(served, request_bytes=1024) as client:
        assert client.post("/api/ask", json={**ASKED, "prompt": "x" * 2000}).status_code == 413
        parts = (b"x" * 600 for _ in range(5))  # without a length
        assert client.post("/api/ask", content=parts).status_code == 413


def test_what_is_this_machine_is_known_by_its_address():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--host", "0.0.0.0"), "give a token"),
        (("--host", "0.0.0.0", "--token", "short"), "at least 16"),
        (("--port", "70000"), "--port"),
        (("nowhere",), "nowhere"),
    ],
)
def test_a_server_that_anybody_could_ask_is_not_started(llama_index, monkeypatch, capsys, arguments, sentence):
    monkeypatch.delenv("TRACKSTAR_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", ["trackstar", "serve", str(llama_index.path), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
