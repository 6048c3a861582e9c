import gzip
import json

import pytest


@pytest.fixture(scope="session")
def arc_rows(tmp_path_factory):
    rows = [
        {
            "question": f"the quick {i}?",
            "choices": {"text": ["fox", "dog"], "label": ["A", "B"]},
            "answerKey": "AB"[i % 2],
        }
        for i in range(9)
    ]
    path = tmp_path_factory.mktemp("arc") / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path
