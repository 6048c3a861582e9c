"""The training step as a process of its own: what it saves, what it resumes, and what it never takes for its own."""

import json
import signal
import time
from pathlib import Path

import pytest
from small import UNEVEN, lines_of, start_and_wait_for_step, train_step

from lpc.files import sha256


def assert_same_run(a: Path, b: Path):
    """Bit-equal weights and log lines, but for the clock and the memory."""
    for name in ("model.safetensors", "latent.safetensors"):
        assert sha256(a / "model" / name) == sha256(b / "model" / name), name
    volatile = {"tokens_per_second", "memory_gib"}
    strip = lambda lines: [{k: v for k, v in line.items() if k not in volatile} for line in lines]  # noqa: E731
    assert strip(lines_of(a)) == strip(lines_of(b)) and lines_of(a)


def stopped(inputs: Path, folder: Path, number: int = 2, by: int = signal.SIGTERM) -> Path:
    """A training that a signal stopped after that step or a later one; the checkpoint that it left."""
    step = start_and_wait_for_step(inputs, folder, number)
    step.send(by)
    assert step.wait(60) == 85, step.errors
    assert f"on {signal.Signals(by).name}" in step.errors
    return max(folder.glob("checkpoints/*/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_killed_runs_go_on_bit_equal(inputs, unbroken, tmp_path):
    """SIGKILL twice, wherever it hits; the third attempt ends with the unbroken run's losses and weights."""
    for number in (2, 7):
        step = start_and_wait_for_step(inputs, tmp_path, number)
        step.send(signal.SIGKILL)
        assert step.wait() == -signal.SIGKILL and not (tmp_path / "model").exists()
    assert "resuming from checkpoint-" in train_step(inputs, tmp_path, **UNEVEN)
    assert len(json.loads((tmp_path / "train.json").read_text())["resumed_from"]) == 2
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_first(inputs, unbroken, tmp_path, number):
    stopped(inputs, tmp_path, by=number)
    train_step(inputs, tmp_path, **UNEVEN)
    assert_same_run(unbroken, tmp_path)


def test_the_end_of_the_job_saves_first(inputs, unbroken, tmp_path):
    """SLURM_JOB_END_TIME is near: the run saves and stops by itself after its first step."""
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
    assert "the end of the job's time" in train_step(inputs, tmp_path, expect=85, environment=soon, **UNEVEN)
    train_step(inputs, tmp_path, **UNEVEN)
    assert_same_run(unbroken, tmp_path)


def test_a_torn_checkpoint_is_not_resumed(inputs, unbroken, tmp_path):
    """A later checkpoint without its last file (killed while saving) is passed over for the last complete one."""
    torn = stopped(inputs, tmp_path).with_name("checkpoint-17")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    train_step(inputs, tmp_path, **UNEVEN)
    assert_same_run(unbroken, tmp_path)


def test_a_checkpoint_of_another_spec_is_never_resumed_and_says_so(inputs, unbroken, tmp_path):
    stopped(inputs, tmp_path)
    errors = train_step(inputs, tmp_path, seed=1, **UNEVEN)
    assert "a checkpoint of other data, base or settings; not resumed" in errors
    assert json.loads((tmp_path / "train.json").read_text())["resumed_from"] == []
    assert sha256(tmp_path / "model/latent.safetensors") != sha256(unbroken / "model/latent.safetensors")
