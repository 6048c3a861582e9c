"""What a person sees at a terminal: progress by rule and the failed job's log; plain lines elsewhere."""

import importlib.util
import os
import pty
import re
import subprocess
import sys

import pytest
from checkout import ROOT, SMALL

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def at_terminal(command: list, **options) -> tuple[int, str]:
    """Run a command whose output is a terminal; its exit code and what the terminal got, without control codes."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 2**16):
            parts.append(part)
    except OSError:
        pass  # the terminal's other end is closed
    os.close(ours)
    return process.wait(), CODES.sub("", b"".join(parts).decode(errors="replace"))


def test_make_demo_asks_for_progress_bars_on_a_terminal_alone():
    """The shell of the recipe, evaluated with and without a terminal."""
    make = ["make", "--dry-run", "demo", f"PYTHON={sys.executable}"]
    planned = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (line,) = re.findall(r"^snakemake all .*$", planned, re.MULTILINE)
    shell = ["/bin/bash", "-euo", "pipefail", "-c", f"echo {line}"]
    plain = subprocess.run(shell, check=True, capture_output=True, text=True).stdout.strip()
    assert plain == "snakemake all --cores all --configfile config/demo.yaml"
    assert at_terminal(shell) == (0, f"{plain} --logger rich\r\n")


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_logger_plugin_rich") is None, reason="the extra `terminal` is not installed"
)
def test_a_failed_jobs_log_is_shown_with_progress_bars(checkout):
    (checkout.folder / "mine.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 20)
    mine = {"kind": "pairs", "path": "./mine.jsonl", "split": {"validation": 1, "test": 1}}
    config = checkout.write({**SMALL, "datasets": {**SMALL["datasets"], "mine": mine}})
    target = "results/small/data/mine/pairs.parquet"
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--logger", "rich"]
    code, shown = at_terminal([*command, "--configfile", str(config)], cwd=checkout.folder)
    assert code == 1
    assert "Workflow Progress" in shown and "Failed split" in shown
    (line,) = {line.strip() for line in shown.splitlines() if line.startswith("error: ")}
    assert "missing field rejected" in line
