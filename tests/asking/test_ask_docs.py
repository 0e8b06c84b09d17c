"""The example of docs/ask.md runs as it stands, and is as short as it promises to be."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "ask.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_runs_and_is_short(llama_index, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(example.replace('"INDEX"', repr(str(llama_index.path))), {})
    assert "trackstar: proponents" in capsys.readouterr().out
