"""How every page of ours is made: one template environment, and one way to let nothing foreign become markup."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from trackstar.tasks.report.passages import visible

STYLE = Path(__file__).with_name("report.css")  # of every page


def page_template(path: Path, *, filters: Mapping[str, Callable[..., Any]] | None = None) -> Template:
    """A template that escapes what it prints, refuses names it does not know, and prints only what HTML can hold."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(path.name)


def asset(path: Path) -> Markup:
    """A style sheet or a script of ours, to be written into a page as it is."""
    return Markup(path.read_text(encoding="utf-8"))


def csp_source(content: str) -> str:
    """The Content-Security-Policy source that admits an inline element with exactly this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _readable(value: Any) -> Any:
    """Whatever a template prints, without the characters that HTML or UTF-8 cannot hold."""
    return type(value)(visible(value)) if isinstance(value, str) else value
