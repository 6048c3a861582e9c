"""The storm in small, and what its comparison sees."""

import json
import types

import pytest
import storm
from compare import digest, digests

from lpc.report.page import Answer, Section, Table, number_column, render, text_column


@pytest.mark.timeout(2400)
def test_killed_runs_end_like_an_undisturbed_one(tmp_path):
    """A round of each kind: a training killed twice, orphaned jobs, a full disk, a second Snakemake."""
    code = storm.main(["--rounds", "4", "--work", str(tmp_path / "work"), "--output", str(tmp_path)])
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert code == 0, rounds
    assert {record["kind"] for record in rounds} == {kind for kind, _ in storm.SCHEDULE}
    assert len(rounds[0]["resumed"]) == 2
    assert len((tmp_path / "table.md").read_text().splitlines()) == 5 + len(rounds)


def project(folder, *, accuracy=80.0, seconds=3.5):
    """A few artefacts of a project, in which one result and one measured time stand."""
    folder.mkdir()
    (folder / "report.html").write_text(html(accuracy, seconds))
    (folder / "train.json").write_text(json.dumps({"accuracy": accuracy, "seconds": seconds}))
    (folder / "train.jsonl").write_text(json.dumps({"accuracy": accuracy, "tokens_per_second": seconds}) + "\n")
    (folder / "training.csv").write_text(table(accuracy, seconds))
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").write_bytes(b"weights")
    (folder / "logs").mkdir()
    (folder / "logs/train.log").write_text(str(seconds))
    return folder


def table(accuracy, seconds):
    return f"recipe,accuracy,seconds\ndpo,{accuracy},{seconds}\n"


def html(accuracy, seconds):
    columns = [text_column("recipe"), number_column("accuracy"), number_column("wall time", "seconds")]
    rows = [{"recipe": "dpo", "accuracy": accuracy, "seconds": seconds}]
    shown = Table("Runs", columns, rows, ("training.csv", table(accuracy, seconds)))
    answer = Answer("It works", [], [(f"{seconds} s", "of computing in 7 jobs")])
    return render("mine", answer, [Section("cost", "Cost", [shown])])


def test_measured_times_are_masked_and_nothing_else(tmp_path):
    first, later = project(tmp_path / "a"), project(tmp_path / "b", seconds=4.5)
    assert storm.differences(digests(first), digests(later)) == []
    other = project(tmp_path / "c", accuracy=81.0)
    assert storm.differences(digests(first), digests(other)) == [
        "report.html",
        "train.json",
        "train.jsonl",
        "training.csv",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("in 7 jobs", "in 8 jobs"),
        ("It works", "It fails"),
        ("wall time", "processor time"),
        ('data-sort="80.0"', 'data-sort="80.1"'),
        (">dpo<", ">ipo<"),
    ],
)
def test_every_other_part_of_the_page_is_compared(tmp_path, old, new):
    path = tmp_path / "report.html"
    path.write_text(html(80.0, 3.5))
    before = digest(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert digest(path) != before


def test_files_that_are_torn_missing_or_of_no_undisturbed_run_are_named(tmp_path):
    run = project(tmp_path / "run")
    expected = digests(run)
    (run / "model/model.safetensors").write_bytes(b"weigh")
    (run / "training.csv").unlink()
    (run / "train.json").write_text('{"accur')
    (run / "more.csv").write_text("a\n1\n")
    torn = ["model/model.safetensors", "more.csv", "train.json"]
    assert storm.Storm.torn(types.SimpleNamespace(expected=expected), run) == torn
    assert storm.differences(expected, digests(run)) == sorted([*torn, "training.csv"])


def test_the_log_of_a_training_that_goes_on_is_not_torn(tmp_path):
    run = project(tmp_path / "run")
    expected = digests(run)
    (run / "train.jsonl").write_text("")
    compared = types.SimpleNamespace(expected=expected)
    assert storm.Storm.torn(compared, run) == ["train.jsonl"]
    (run / "train.json").unlink()
    assert storm.Storm.torn(compared, run) == []
