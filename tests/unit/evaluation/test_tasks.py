"""Loading of benchmark tasks: local files, faulty entries, and the record of a download."""

import gzip
import json
from argparse import Namespace

import pyarrow
import pytest
from task_entry import entry

from lpc import files
from lpc.cli import UserError
from lpc.config.specs import DownloadTask
from lpc.evaluation import tasks
from lpc.steps import download_task


def test_truthfulqa_csv_becomes_targets():
    row = {
        "Question": "What happens? ",
        "Best Answer": "Nothing",
        "Correct Answers": "Nothing; It is fine;  ; It is fine",
        "Incorrect Answers": "You die; You fly",
    }
    assert tasks.truthfulqa_targets(row) == {
        "question": "What happens?",
        "mc1_targets": {"choices": ["Nothing", "You die", "You fly"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["Nothing", "It is fine", "You die", "You fly"], "labels": [1, 1, 0, 0]},
    }


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"task": "arc_easzy", "metric": "acc"}, "lm-eval .* has no task or group 'arc_easzy'"),
        ({"task": "config/tasks/none.yaml", "metric": "acc"}, "none.yaml: no such task file"),
        (
            {"task": "mmlu", "metric": "acc", "data": {"test": "x.jsonl"}},
            "`data` is for single tasks, and mmlu is a group",
        ),
        ({"task": "arc_easy", "metric": "f1", "data": "test"}, "has no metric 'f1'; it has acc, acc_norm"),
        ({"task": "arc_easy", "metric": "acc", "data": "train"}, "takes its questions from split test"),
        (
            {"task": "arc_easy", "metric": "acc", "data": "test", "num_fewshot": 2},
            "takes its examples from split train",
        ),
        ({"task": "arc_easy", "metric": "acc", "data": "other"}, "takes its questions from split test"),
        (
            {"task": "gsm8k", "metric": "exact_match,strict-match", "data": "test"},
            "takes its examples from split train",
        ),
        (
            {"task": "gsm8k", "metric": "exact_match,strict-match", "data": "test", "num_fewshot": 0},
            "do not have the columns",
        ),
        ({"task": "truthfulqa_mc1", "metric": "acc", "data": "validation"}, "neither mc1_targets nor Question"),
        ({"task": "arc_easy", "metric": "acc"}, "its data set cannot be loaded .* run download_task"),
    ],
)
def test_bad_entries_are_said_in_one_line(arc_rows, keys, message):
    if isinstance(keys.get("data"), str):
        keys = keys | {"data": {keys["data"]: str(arc_rows)}}
    with pytest.raises(UserError, match=message):
        tasks.load_task(entry(**keys))


def test_examples_that_a_task_fixes_at_none_are_not_silently_ignored(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}}) + "\n")
    wrong = entry(task="truthfulqa_mc1", metric="acc", num_fewshot=3, data={"validation": str(path)})
    with pytest.raises(UserError, match="names no split for examples; set `num_fewshot` to 0"):
        tasks.load_task(wrong)
    loaded = tasks.load_task(wrong | {"num_fewshot": 0})
    assert loaded["tasks"]["mine"].config.num_fewshot == 0


ROWS = [{"a": "x\u2028y", "b": "1"}, {"a": "z", "b": "2"}]


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows.csv.gz", "rows.parquet"]
)
def test_kinds_of_files(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        files.write_parquet(path, pyarrow.Table.from_pylist(ROWS))
    else:
        text = {
            "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
            "json": json.dumps(ROWS),
            "csv": "\ufeffa,b\nx\u2028y,1\nz,2\n",
        }[name.split(".")[1]].encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert tasks.read_rows(path) == ROWS


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "truncated or not jsonl"),
        ("a.jsonl.gz", b"plain", "truncated or not jsonl"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "truncated or not jsonl"),
        ("a.json", b'{"a": 1}', "holds no rows"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.txt", b"text", "unsupported file type"),
        ("a.parquet", b"text", "not a readable Parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        tasks.read_rows(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        tasks.read_rows(tmp_path / "none.json")


def test_the_record_of_a_download(arc_rows, tmp_path):
    own = entry(task="arc_challenge", metric="acc", data={"test": str(arc_rows)})
    download_task.main(Namespace(spec=DownloadTask.parse(own, {}), output=tmp_path / "task.json"))
    record = json.loads((tmp_path / "task.json").read_text())
    assert record["rows"] == {"mine": {"test": 9}} and record["hub"] == []
    assert record["data"]["test"] == {"file": str(arc_rows), "sha256": files.sha256(arc_rows)}
