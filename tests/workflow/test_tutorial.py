"""docs/tutorial.md: its configurations and commands, in their order, in a copy of the checkout."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, Checkout

from lpc import files

BLOCKS = re.findall(r"^```(sh|yaml)\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """(checkout, what each block of commands prints) after all of them."""
    checkout, printed = Checkout(tmp_path_factory.mktemp("tutorial")), []
    programs = Path(sys.executable).parent  # where an activated environment has its programs
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for kind, text in BLOCKS:
        if kind == "yaml":
            name = text.partition("\n")[0].removeprefix("# ")
            (checkout.folder / name).write_text(text, encoding="utf-8")
            continue
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=checkout.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout + done.stderr)
    return checkout, printed


def test_every_command_ends_well_and_the_report_is_there(tutorial):
    checkout, printed = tutorial
    results = checkout.folder / "results/mine"
    assert len(printed) == 6
    assert "One seed: accuracy with LPC minus without is" in (results / "report.html").read_text(encoding="utf-8")
    splits = files.read_json(results / "data/mine/pairs.json")["splits"]
    assert {name: split["pairs"] for name, split in splits.items()} == {"test": 20, "train": 32, "validation": 8}
    with open(results / "tables/preference_accuracy.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["recipe"], row["n"], row["longer_accuracy"]) for row in rows] == [
        ("dpo", "20", "1.0"),
        ("dpo-lpc", "20", "1.0"),
    ]


def test_a_changed_setting_reruns_what_it_affects(tutorial):
    _, printed = tutorial
    planned = re.findall(r"^(?:local)?rule (\w+):", printed[4], re.MULTILINE)
    assert planned.count("train") == 1 and not {"split", "pretrain", "reference"} & set(planned)


def test_the_model_of_the_hub_plans_a_download_and_six_trainings(tutorial):
    _, printed = tutorial
    planned = re.findall(r"^(?:local)?rule (\w+):", printed[5], re.MULTILINE)
    assert planned.count("download_base") == 1 and planned.count("train") == 6
