"""Bad input and broken surroundings: one clear message, exit code not 0, nothing half-written under a final name."""

import copy
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from checkout import SMALL

SPLIT = "results/small/data/mine/rows.parquet"


def with_data(checkout, content: bytes, **settings) -> dict:
    """The small project with a dataset `mine` of UltraFeedback rows in a gzipped file."""
    (checkout.folder / "mine.jsonl.gz").write_bytes(content)
    config = copy.deepcopy(SMALL)
    mine = {"kind": "ultrafeedback", "path": "mine.jsonl.gz", "split": {"validation": 1, "test": 1}, **settings}
    config["datasets"]["mine"] = mine
    return config


def rows(*completions: int) -> bytes:
    """Gzipped rows, one for each number of completions."""
    lines = []
    for number, count in enumerate(completions):
        answers = [{"model": "m", "response": f"answer {i}", "overall_score": i} for i in range(count)]
        lines.append(json.dumps({"source": "s", "instruction": f"question {number}", "completions": answers}))
    return gzip.compress("\n".join(lines).encode())


def test_config_faults_are_all_listed_before_any_job(checkout):
    config = copy.deepcopy(SMALL)
    config["training"]["learning_rate"] = "5e-7"
    config["recipes"]["dpo"]["objective"]["bta"] = 0.1
    config["experiments"]["main"]["bases"] = ["tny"]
    path = checkout.write(config)
    output = checkout.snakemake("all", "--cores", "1", "--configfile", path, expect=1)
    assert "3 faults in the configuration:" in output
    for fault in (
        'training.learning_rate: "5e-7" is a string, expected a number; YAML reads it as text: write 5.0e-7',
        "recipes.dpo.objective.bta: unknown key; did you mean beta?",
        "experiments.main.bases[0]: tny is not defined under bases; did you mean tiny?",
    ):
        assert fault in output
    assert f"config/{path.name}:" in output
    assert "Traceback" not in output
    assert not (checkout.folder / "results").exists()


def test_training_on_several_nodes_outside_of_slurm_says_so(checkout, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    train = {"nodes": 2, "launch": "config/accelerate/ddp.yaml"}
    path = checkout.write(
        {**SMALL, "training": {**SMALL["training"], "micro_batch_size": 8}, "resources": {"train": train}}
    )
    checkout.pretend_finished(path)
    summary = "results/small/runs/tiny/world/dpo/seed-0/train.json"
    output = checkout.snakemake(summary, "--cores", "1", "--forcerun", "train", "--configfile", path, expect=1)
    assert (
        "error: resources.train.nodes: several nodes need a SLURM job with as many; use --profile slurm, or" in output
    )


def test_missing_image_is_named_before_any_job(checkout):
    path = checkout.write(SMALL)
    output = checkout.snakemake("all", "--cores", "1", "--sdm", "apptainer", "--configfile", path, expect=1)
    [line] = [line for line in output.splitlines() if "no such image" in line]
    assert line.startswith("containers/images/training-") and "`make images`" in line
    assert not (checkout.folder / "results").exists()


def test_missing_files_are_named_before_any_job(checkout):
    config = with_data(checkout, rows(4))
    config["datasets"]["mine"]["path"] = "./elsewhere.jsonl.gz"
    config["bases"]["other"] = {"model": "./config"}
    output = checkout.snakemake("all", "--cores", "1", "--configfile", checkout.write(config), expect=1)
    assert "datasets.mine.path: ./elsewhere.jsonl.gz: no such file" in output
    assert "bases.other.model: ./config is not a checkpoint" in output
    assert not (checkout.folder / "results").exists()


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        pytest.param(rows(*[4] * 50)[:-20], {}, "mine.jsonl.gz", id="truncated gzip"),
        pytest.param(b"not gzip at all", {}, "mine.jsonl.gz", id="no gzip"),
        pytest.param(rows(4, 4, 0, 4), {}, "max_rejected_rows", id="row without completions"),
        pytest.param(rows(4, 4), {"split": {"validation": 5, "test": 5}}, "validation", id="too few rows"),
    ],
)
def test_bad_rows_stop_the_split_with_one_line(checkout, content, settings, expected):
    config = checkout.write(with_data(checkout, content, **settings))
    output = checkout.snakemake(SPLIT, "--cores", "1", "--configfile", config, expect=1)
    lines = {line.strip() for line in output.splitlines() if line.strip().startswith("error: ")}
    assert len(lines) == 1, output
    assert expected in lines.pop()
    assert "Traceback" not in output
    assert not (checkout.folder / SPLIT).exists()


def test_rejected_rows_below_the_share_are_counted(checkout):
    config = checkout.write(with_data(checkout, rows(4, 4, 0, 4), max_rejected_rows=0.3))
    checkout.snakemake(SPLIT, "--cores", "1", "--configfile", config)
    rejects = (checkout.folder / "results/small/data/mine/rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 1


def mounted(checkout, options: str, *arguments, place="results", then="true") -> subprocess.CompletedProcess:
    """Snakemake with a small file system of its own at `place`, after the shell command `then`."""
    (checkout.folder / place).mkdir(parents=True)
    script = f'mount -t tmpfs -o {options} none {place} && {then} && shift && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", "-", sys.executable, "-m", "snakemake", *map(str, arguments)],
        cwd=checkout.folder,
        capture_output=True,
        text=True,
        check=False,
    )


needs_mount = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
    reason="no right to mount a file system",
)


@needs_mount
def test_full_disk(checkout):
    """The world's rows do not fit; its log, a line, does."""
    config = copy.deepcopy(SMALL)
    config["datasets"]["world"]["rows"] = 20000
    target = "results/small/data/world/world.jsonl.gz"
    arguments = (target, "--cores", "1", "--configfile", checkout.write(config))
    result = mounted(checkout, "size=200k", *arguments)
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "No space left on device; its file system has " in output


@needs_mount
def test_reason_is_seen_where_the_log_is_on_the_full_disk(checkout):
    logs = "results/small/logs/split"
    config = checkout.write(with_data(checkout, b"not gzip at all"))
    arguments = (SPLIT, "--cores", "1", "--configfile", config)
    result = mounted(checkout, "size=4k", *arguments, place=logs, then=f"head -c 4096 /dev/zero > {logs}/full")
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "mine.log: empty file" in output
    assert [line for line in output.splitlines() if line.startswith("error: ") and "mine.jsonl.gz" in line], output


@needs_mount
def test_read_only_results(checkout):
    arguments = ("all", "--cores", "1", "--configfile", checkout.write(SMALL))
    result = mounted(checkout, "ro", *arguments)
    assert result.returncode == 1
    assert "Read-only file system" in result.stdout + result.stderr


def wait_for(condition, process, seconds=120):
    """Poll until `condition()`; fail if the process ends or the time is up before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_interrupted_run_goes_on(checkout, how):
    """In the middle of pretraining: no model is there afterwards, and a rerun makes what is missing and no more."""
    config = copy.deepcopy(SMALL)
    config["bases"]["tiny"]["scratch"]["epochs"] = 2000
    slow = checkout.write(config, "slow.yaml")
    base = checkout.folder / "results/small/bases/tiny"
    log = checkout.folder / "results/small/logs/pretrain/tiny.log"
    process = checkout.start(
        "results/small/bases/tiny/base.json", "--cores", "1", "--configfile", slow, start_new_session=True
    )
    wait_for(lambda: log.exists() and log.stat().st_size > 0, process)
    # As a terminal's Ctrl-C does, or a person who kills Snakemake alone.
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    elif how == signal.SIGTERM:
        process.send_signal(how)
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.killpg(process.pid, how)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0, output
    assert not (base / "base.json").exists()
    assert not (base / "model" / "model.safetensors").exists()

    quick = checkout.write(SMALL)
    target = ("results/small/bases/tiny/base.json", "--cores", "1", "--configfile", quick)
    if how == signal.SIGKILL:
        # Snakemake had no chance to open its lock, and says how.
        assert "--unlock" in checkout.snakemake(*target, expect=1)
        checkout.snakemake("--unlock", "--configfile", quick)
    rows = checkout.folder / "results/small/data/world/rows.parquet"
    made = rows.stat().st_mtime_ns
    checkout.snakemake(*target)
    assert (base / "base.json").exists() and (base / "model" / "model.safetensors").exists()
    assert rows.stat().st_mtime_ns == made
