import json

import pytest

from tests.flows.runs import build
from tests.tiny import QUERIES
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig

pytestmark = pytest.mark.usefixtures("prefect_server")

ONE_WORD = "no space is between prompt and completion, which are read as one word"


def test_how_queries_were_read_is_logged_once_and_is_in_the_record_and_the_report(llama, corpus, tmp_path, caplog):
    asked = [QUERIES[0], {**QUERIES[1], "completion": QUERIES[1]["completion"].strip()}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    build(tmp_path / "index", llama, corpus)
    config = {
        "index": str(tmp_path / "index"),
        "queries": str(tmp_path / "queries.jsonl"),
        "out": str(tmp_path / "out"),
        "methods": ("grad_dot", "bm25"),  # the first reads the queries once more, without V
        "tail_patch": {"num_proponents": 0},
    }
    for _ in range(2):  # the second time nothing is computed, and it is said again
        caplog.clear()
        compare(CompareConfig.model_validate(config))
        (said,) = [record.message for record in caplog.records if ONE_WORD in record.message]
        assert said.startswith("query 'q1' at 'r belongs to|Vienna': ")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["warnings"] == [said]
    assert record["queries"]["q0"]["warnings"] == []
    (of_query,) = record["queries"]["q1"]["warnings"]
    assert of_query.startswith(f"'r belongs to|Vienna': {ONE_WORD}")
    assert ONE_WORD in (tmp_path / "out" / "report.html").read_text()
