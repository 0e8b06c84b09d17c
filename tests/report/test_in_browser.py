"""The report in a real browser: a hostile corpus runs nothing, and the page's own script runs without a complaint."""

import json
import re
import shutil
import subprocess

import pytest

from tests.report.test_render import HOSTILE, page_of

BROWSER = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
)  # fmt: skip

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")


def test_a_hostile_corpus_runs_nothing_and_the_pages_own_script_runs(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(page_of(HOSTILE, labels=HOSTILE[:10]), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *QUIET, profile, "--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}#q2"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # alert() would be logged, and so would a refused script, style or request, and any error of the page's script
    assert not re.findall(r".*CONSOLE.*", shown.stderr)
    assert '<a href="#q2" dir="auto" aria-current="true">' in shown.stdout  # the script marks where the reader is
    index = re.search(r'id="index-data">(.*?)</script>', shown.stdout, re.DOTALL)
    assert len(json.loads(index[1])) == 2
