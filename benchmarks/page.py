"""What every page of results says of where it comes from."""

import os
import platform
import subprocess
from pathlib import Path


def provenance(command: str) -> str:
    """The command, the commit and the machine, in one sentence."""
    return (
        f"`{command}` at {_commit()}, on {os.cpu_count()} cores of {platform.machine()}, Python "
        f"{platform.python_version()}."
    )


def publish(page: str, target: Path | None) -> None:
    """Print the page, and keep it in a file if one is named."""
    print(page)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    ).stdout.strip()
