"""`benchmarks/training.py` on a tiny model: what a GPU runs at 8B, to its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="not installed: trl; pip install 'lpc[bench]'")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_ours_and_trl_on_the_lengths_of_a_file(tmp_path):
    """Each case has its numbers; one that fails, for want of a compiler, is named."""
    rows = [
        {"prompt": "what is it " * (1 + i % 5), "chosen": "it is good " * (1 + i % 7), "rejected": "no " * (1 + i % 3)}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--vocabulary", "300", "--pairs", "2", "--steps", "1"]
    command += ["--lengths", tmp_path / "pairs.jsonl", "--longest", "24", "--checkpointing", "--threads", "1"]
    command += ["--cases", "trl dpo", "trl simpo", "lpc dpo", "lpc dpo exact8", "--output", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results.keys() == {"300 trl dpo", "300 trl simpo", "300 lpc dpo", "300 lpc dpo exact8"}
    for (result,) in results.values():
        assert len(result["steps"]) == 1 and result["seconds"] > 0 and 0 < result["grow_gib"] < result["peak_gib"]
    assert "| 300 | DPO, step time and memory | " in done.stdout
    assert "| 300 | exact, 8 codes, against our own plain DPO | " in done.stdout

    command[command.index("--cases") : command.index("--output")] = ["--optimizer", "adamw_8bit", "--cases", "lpc dpo"]
    done = subprocess.run(
        [*command, "--pairs", "1"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CC": "no-such", "PATH": ""},
    )
    assert "lpc dpo              failed with exit code 1; its error stands above" in done.stdout
    assert "adamw_8bit needs a C compiler" in done.stderr
