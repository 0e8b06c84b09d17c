"""The one line at the foot of a terminal: what is being done, how far it is, and what is left.

What is written meanwhile appears above it, log lines too where their handlers were made while the line is shown. It
moves every quarter of a second, whether or not the work says anything. Where there is no terminal, there is no line.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from threading import Lock

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from trackstar.tasks.runtime.stop import check_stop

DESCRIPTION_CHARACTERS = 32

Advance = Callable[[int], None]


class _Line:
    """The steps that are under way, of which the last one to begin is shown."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._steps, self._lock = progress, list[TaskID](), Lock()
        self.whole: TaskID | None = None  # takes the progress of all its parts

    def begin(self, description: str, total: float | None) -> TaskID:
        if len(description) > DESCRIPTION_CHARACTERS:
            description = f"{description[: DESCRIPTION_CHARACTERS - 1]}…"
        with self._lock:
            step = self._progress.add_task(escape(description), total=total)
            self._steps.append(step)
            self._show_last()
        return step

    def end(self, step: TaskID) -> None:
        with self._lock:
            self._steps.remove(step)
            self._progress.remove_task(step)
            self._show_last()

    def advance(self, step: TaskID, count: int) -> None:
        self._progress.advance(step, count)

    def hide(self) -> None:
        self._progress.stop()

    def _show_last(self) -> None:
        for step in self._steps:
            self._progress.update(step, visible=step == self._steps[-1])


class _HowFar(ProgressColumn):
    """How far the step is, how long it has taken, and what is left where that is known."""

    def render(self, task: Task) -> Text:
        took = timedelta(seconds=int(task.elapsed or 0))
        if task.total is None:
            return Text(str(took))
        left = "" if task.time_remaining is None else f", {timedelta(seconds=ceil(task.time_remaining))} left"
        return Text(f"{task.completed:,.0f} of {task.total:,.0f}, {took}{left}")


_line: _Line | None = None


@contextmanager
def showing(description: str) -> Iterator[None]:
    """Show the line while a command runs."""
    global _line
    console = Console(stderr=True)
    if not console.is_terminal or _line is not None:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(8), _HowFar())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        _line = _Line(progress)
        _line.begin(description, None)
        try:
            yield
        finally:
            _line = None


def hide() -> None:
    """Take the line away and give the terminal its cursor back, for a process that ends at once."""
    if _line is not None:
        _line.hide()


@contextmanager
def step(description: str, *, total: float | None = None, is_whole: bool = False) -> Iterator[Advance]:
    """Show a step of the work while it lasts; yield what its progress is told to.

    Args:
        total: What it will have been told in the end; None where nobody knows.
        is_whole: Whether steps within it are its parts, whose progress is its own.

    Raises:
        Stopped: The run was told to stop: when the step begins, or when its progress is told.
    """
    check_stop()
    with _shown(description, total, is_whole=is_whole) as show:

        def advance(count: int) -> None:
            show(count)
            check_stop()

        yield advance


@contextmanager
def _shown(description: str, total: float | None, *, is_whole: bool) -> Iterator[Advance]:
    line = _line
    if line is None:
        yield lambda count: None
        return
    if line.whole is not None:
        yield lambda count: line.advance(line.whole, count) if total and line.whole is not None else None
        return
    task = line.begin(description, total)
    line.whole = task if is_whole else None
    try:
        yield lambda count: line.advance(task, count)
    finally:
        line.whole = None if is_whole else line.whole
        line.end(task)
