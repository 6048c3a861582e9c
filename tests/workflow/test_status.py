"""How far a project is, against what Snakemake itself plans and runs."""

import copy
import os
import re
import signal
import time

import pytest
from checkout import SMALL

from lpc import jobs, status, unlock
from lpc.config.load import load
from lpc.layout import Layout
from lpc.lock import lock

EVERYTHING = {
    **SMALL,
    "datasets": {
        **SMALL["datasets"],
        "other": {"kind": "world", "rows": 300, "split": {"validation": 40, "test": 60}, "people": 6},
        "held": {"kind": "pairs", "path": "a/data", "split": {"validation": 40, "test": 60}},
        "texts": {"kind": "world", "rows": 100, "split": {"validation": 10, "test": 10}},
        "both": {"kind": "mix", "mix": {"world": 1.0, "texts": 0.5}},
        "unused": {"kind": "world", "rows": 100, "split": {"validation": 10, "test": 10}},
    },
    "noise": {"flip": {"rate": 0.5}, "never": {"rate": 0.1}},
    "bases": {
        "tiny": {"scratch": {**SMALL["bases"]["tiny"]["scratch"], "dataset": "texts"}},
        "hub": {"model": "a/model"},
        "spare": {"model": "a/spare"},
        "large": {"model": "a/large"},
        "short": {"quantize": "large"},
    },
    "recipes": {
        **SMALL["recipes"],
        "simpo": {"objective": {"name": "simpo"}},
        "vector": {"objective": {"name": "dpo"}, "latent": {"kind": "vector"}},
    },
    "experiments": {
        **SMALL["experiments"],
        "more": {"bases": ["hub"], "datasets": ["other"], "recipes": ["simpo", "vector", "dpo-lpc"]},
        "noise": {"bases": ["tiny"], "datasets": ["world"], "noise": ["flip"], "recipes": ["dpo"], "seeds": [0, 1]},
        "quantised": {"bases": ["short"], "datasets": ["world"], "recipes": ["dpo"]},
        "mixture": {"bases": ["tiny"], "datasets": ["both"], "recipes": ["dpo"]},
        "sweep": {"bases": ["tiny"], "datasets": ["world"], "recipes": ["dpo-lpc"], "sweep": {"latent.codes": [4, 8]}},
    },
    "evaluation": {
        **SMALL["evaluation"],
        "preference": {"datasets": ["held"]},
        "personalise": {"contexts": [0, 2]},
        "benchmarks": {
            "tasks": {
                "easy": {"task": "config/tasks/world_choice.yaml", "metric": "acc", "questions": {"kind": "easy"}},
                "arc_easy": {"metric": "acc"},
                "own": {"task": "config/tasks/world_choice.yaml", "metric": "acc", "data": {"test": "own.jsonl"}},
            }
        },
        "alpacaeval": {},
        "style": {},
    },
}


def written(checkout, config, monkeypatch):
    """The configuration's file, and the jobs that are counted, in the checkout as working directory."""
    path = checkout.write(config)
    (checkout.folder / "own.jsonl").write_text("{}\n")
    monkeypatch.chdir(checkout.folder)
    found, layout = load(path), Layout(f"results/{config['project']}")
    return path, jobs.all_jobs(found, layout), layout


def test_the_jobs_are_those_that_snakemake_plans(checkout, monkeypatch):
    """By their logs, of a configuration in which every rule has a job."""
    path, found, layout = written(checkout, EVERYTHING, monkeypatch)
    output = checkout.forked("all", "--dry-run", "--configfile", path)
    planned = re.findall(r"^    log: (.*)$", output, re.MULTILINE)
    assert len(found) == len(set(found))
    assert sorted(str(layout.log(job.rule, *job.names)) for job in found) == sorted(planned)
    assert {job.rule for job in found} == checkout.rules(checkout.folder) - {"cards"}
    files = re.findall(r"^    output: (.*)$", output, re.MULTILINE)
    made = {file for line in files for file in line.split(", ")}
    assert {str(file) for job in found for file in job.files} <= made


def shown(checkout, path, capsys) -> list[str]:
    status.main(status.parser().parse_args(["--configfile", str(path)]))
    return capsys.readouterr().out.splitlines()


def row(lines, rule) -> list[str]:
    return next(line.split() for line in lines if line.startswith(f"{rule} "))


def test_waiting_failed_running_and_done(checkout, monkeypatch, capsys):
    """A training that fails for real, one whose lock is held, and data that is made for real."""
    config = copy.deepcopy(SMALL)
    config["training"]["batch_size"] = 512  # more than there are pairs
    path, found, layout = written(checkout, config, monkeypatch)
    lines = shown(checkout, path, capsys)
    assert lines[0] == f"results/small: 0 of {len(found)} jobs done, {len(found)} waiting"
    assert lines[1] == "Snakemake: not running"
    target = layout.run("tiny", "world", "dpo", 0).summary
    checkout.snakemake(target, "--cores", "1", "--configfile", path, expect=1)
    with lock(layout.checkpoints("tiny", "world", "dpo-lpc", "0")):
        lines = shown(checkout, path, capsys)
    assert row(lines, "pairs") == ["pairs", "1/1"] and row(lines, "reference") == ["reference", "1/1"]
    assert row(lines, "train") == ["train", "0/2", "1", "1"]
    assert row(lines, "report") == ["report", "0/1", "1"]
    assert lines[lines.index("running:") + 1] == "  train tiny world dpo-lpc 0"
    failed = lines[lines.index("failed:") + 1 :]
    assert (
        failed[0].startswith("  train tiny world dpo 0: error: ")
        and "fewer than training.batch_size (512)" in failed[0]
    )
    assert failed[1:] == [f"    {layout.log('train', 'tiny', 'world', 'dpo', '0')}"]
    assert len(lines) < 40 and all(line == line.rstrip() for line in lines)
    lines = shown(checkout, path, capsys)
    assert row(lines, "train") == ["train", "0/2", "1", "1"] and "running:" not in lines  # failed and waiting


def test_a_job_of_a_living_snakemake_runs_and_that_of_a_killed_one_has_failed(checkout, monkeypatch, capsys):
    config = copy.deepcopy(SMALL)
    config["bases"]["tiny"]["scratch"]["epochs"] = 2000
    path, _, layout = written(checkout, config, monkeypatch)
    target = layout.base("tiny").record
    process = checkout.start(target, "--cores", "1", "--configfile", path, start_new_session=True)
    try:
        end = time.monotonic() + 120
        log = layout.log("pretrain", "tiny")
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        lines = shown(checkout, path, capsys)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert re.match(r"Snakemake: process \d+ on ", lines[1])
    assert row(lines, "pretrain") == ["pretrain", "0/1", "1"]
    assert any(line.startswith("  pretrain tiny: ") for line in lines[lines.index("running:") :])
    assert unlock.running("small") is None
    lines = shown(checkout, path, capsys)
    assert "running:" not in lines and any(line.startswith("  pretrain tiny: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "its log is empty"), ("a\n  b  \n\n", "b"), ("x" * 500, "x" * 157 + "...")],
    ids=["empty", "last", "long"],
)
def test_last_line(tmp_path, text, expected):
    (tmp_path / "log").write_text(text)
    assert status.last_line(tmp_path / "log") == expected
