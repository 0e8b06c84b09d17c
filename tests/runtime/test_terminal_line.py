import io
import sys
import time

import pytest
from rich.console import Console

from trackstar.tasks.runtime import terminal_line
from trackstar.tasks.runtime.terminal_line import showing, step


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal of 80 columns receives."""
    stream = io.StringIO()
    made = lambda **_: Console(file=stream, force_terminal=True, width=80, legacy_windows=False)  # noqa: E731
    monkeypatch.setattr(terminal_line, "Console", made)
    return stream


def test_the_line_moves_every_second_though_the_work_says_nothing(terminal):
    with showing("index"):
        time.sleep(0.1)
        before = len(terminal.getvalue())
        time.sleep(1)
        assert len(terminal.getvalue()) > before


def test_what_is_written_meanwhile_is_not_torn(terminal):
    with showing("index"), step("gradients", total=3) as advance:
        for number in range(3):
            print(f"log line {number}", file=sys.stderr)
            advance(1)
            time.sleep(0.3)
    shown = terminal.getvalue()
    assert all(f"log line {number}\n" in shown for number in range(3))
    assert "3 of 3" in shown


def test_parts_move_the_whole_and_the_last_step_is_the_one_shown(terminal):
    with showing("index"), step("gradients", total=10, is_whole=True), step("rows 0-4"):
        with step("documents", total=5) as advance:
            advance(4)
        time.sleep(0.4)
        assert "4 of 10" in terminal.getvalue()
    assert "rows 0-4" not in terminal.getvalue()


def test_without_a_terminal_there_is_no_line(capsys):
    with showing("index"), step("gradients", total=3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
