"""Training on two processes (gloo, on the CPU) against one."""

import json
import time

import pytest
import safetensors.torch
import torch
from processes import assert_same_run, train_step, train_step_together
from small import UNEVEN, lines_of


def test_two_processes_give_the_losses_of_one(inputs, unbroken, tmp_path):
    """DDP, the same global batch: every logged value to 1e-5, and the summary says two processes. One of them
    tokenises."""
    train_step_together(inputs, tmp_path, **UNEVEN)
    assert sum("48 training pairs tokenised" in file.read_text() for file in tmp_path.glob("stderr-*")) == 1
    assert not list(tmp_path.glob("checkpoints/*/"))
    assert json.loads((tmp_path / "train.json").read_text())["processes"] == 2
    for one, two in zip(lines_of(unbroken), lines_of(tmp_path), strict=True):
        for key in set(one) - {"tokens_per_second", "memory_gib"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-5), key
    a, b = (safetensors.torch.load_file(f / "model/latent.safetensors") for f in (unbroken, tmp_path))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_groups_are_whole_on_two_processes(inputs, tmp_path):
    """Micro-batches of two groups on each device: the losses of one process."""
    latent = {"kind": "exact", "codes": 3, "group_size": 2, "code_scale": 0.5, "learning_rate": 1e-3}
    settings = {"latent": latent, "micro_batch_size": 4}
    train_step(inputs, tmp_path / "one", **settings)
    train_step_together(inputs, tmp_path / "two", **settings)
    for one, two in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        for key in set(one) - {"tokens_per_second", "memory_gib"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-5), key


def test_a_launcher_that_starts_fewer_processes_than_asked_fails_loudly(inputs, tmp_path):
    errors = train_step(inputs, tmp_path, expect=1, processes=2)
    assert "error: 2 processes were asked for, 1 with" in errors
    assert not (tmp_path / "model").exists()


def test_processes_with_other_numbers_of_micro_batches_give_the_losses_of_one(inputs, unbroken, tmp_path):
    train_step_together(inputs, tmp_path, **UNEVEN, micro_batch_tokens=100)
    for one, two in zip(lines_of(unbroken), lines_of(tmp_path), strict=True):
        for key in set(one) - {"tokens_per_second", "memory_gib"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-5), key


def test_two_processes_go_on_bit_equal(inputs, tmp_path):
    """A stop between two log lines: each process takes up the sums of its own pairs, since sums depend on the order."""
    settings = UNEVEN | {"logging_steps": 12}
    train_step_together(inputs, tmp_path / "unbroken", **settings)
    for _ in range(2):  # the first step has a line of its own; the second begins a window
        soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
        train_step_together(inputs, tmp_path / "stopped", expect=85, environment=soon, **settings)
    train_step_together(inputs, tmp_path / "stopped", **settings)
    assert_same_run(tmp_path / "unbroken", tmp_path / "stopped")
