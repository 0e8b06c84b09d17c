"""A Prefect server that goes away in the middle of a run: what is on disk is done, and the process ends."""

import httpx
import pytest
from prefect import flow

from trackstar.flows.cli import runs
from trackstar.storage.errors import InputError, ServerLostError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def server_goes_away(monkeypatch):
    """The server is found to be gone when the flow has ended; nothing ends this process."""
    monkeypatch.setattr(runs, "is_answering", lambda url: False)
    monkeypatch.setattr(runs.os, "_exit", lambda code: None)
    monkeypatch.setattr(runs, "EXIT_TIMEOUT_S", 0.0)


def test_a_result_is_reported_as_done(capsys):
    @flow
    def done(config):
        return config + 1

    assert runs.recorded(done, 1) == 2
    assert "went away and does not know that this run is done\n" in capsys.readouterr().err


def test_a_failure_keeps_its_own_sentence():
    @flow
    def wrong(config):
        raise InputError("no such thing")

    with pytest.raises(InputError, match="no such thing"):
        runs.recorded(wrong, 1)


def test_a_flow_that_cannot_go_on_without_the_server_says_so_and_what_is_kept():
    @flow
    def cut_off(config):
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerLostError, match="went away; what was finished is kept"):
        runs.recorded(cut_off, 1)
