import logging
import re

from trackstar.tasks.runtime import progress as module
from trackstar.tasks.runtime.progress import progress


def test_a_long_stage_logs_how_far_it_is_how_fast_it_goes_and_what_is_left(monkeypatch, caplog):
    monkeypatch.setattr(module, "LOG_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "run_logger", lambda: logging.getLogger("run"))
    with (
        caplog.at_level(logging.INFO, logger="run"),
        progress("rows 0-99", total=100, unit="documents") as advance,
    ):
        advance(20)
        advance(60)
    assert [line.partition(",")[0] for line in caplog.messages] == [
        "rows 0-99: 20 of 100 documents",
        "rows 0-99: 80 of 100 documents",
    ]
    assert all(re.search(r", [\d,]+/s, [\d,]+ s left$", line) for line in caplog.messages)


def test_a_short_stage_logs_nothing(monkeypatch, caplog):
    monkeypatch.setattr(module, "run_logger", lambda: logging.getLogger("run"))
    with caplog.at_level(logging.INFO, logger="run"), progress("short", total=2, unit="documents") as advance:
        advance(2)
    assert caplog.messages == []
