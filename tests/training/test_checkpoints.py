"""The training step: what it saves, what it resumes, and what it never takes for its own."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from processes import assert_same_run, start_and_wait_for_step, train_step
from small import UNEVEN, lines_of

from lpc.files import sha256, write_json
from lpc.training.checkpoints import IDENTITY


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


def test_a_training_with_groups_goes_on_bit_equal(inputs, tmp_path):
    settings = UNEVEN | {"latent": {"kind": "exact", "codes": 3, "group_size": 2}}
    train_step(inputs, tmp_path / "unbroken", **settings)
    step = start_and_wait_for_step(inputs, tmp_path / "killed", 3, **settings)
    step.send(signal.SIGKILL)
    step.wait()
    assert "resuming from checkpoint-" in train_step(inputs, tmp_path / "killed", **settings)
    assert_same_run(tmp_path / "unbroken", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
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


def test_a_torn_checkpoint_is_deleted_and_a_damaged_one_set_aside(inputs, unbroken, tmp_path):
    """One without its last file (killed while saving), and one of which a byte changed on the disk: the training goes
    on from the one before."""
    newest = stopped(inputs, tmp_path, number=3)
    assert len(list(newest.parent.glob("checkpoint-*"))) == 2
    torn = newest.with_name("checkpoint-17")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    step = start_and_wait_for_step(inputs, tmp_path, int(newest.name.split("-")[1]) + 1)
    step.send(signal.SIGTERM)
    assert step.wait() == 85
    assert f"{newest}: damaged (optimizer.pt), set aside" in step.errors and f"{torn}: torn, deleted" in step.errors
    assert newest.with_name(f"damaged-{newest.name}").exists() and not torn.exists()
    train_step(inputs, tmp_path, **UNEVEN)
    assert_same_run(unbroken, tmp_path)


def test_a_checkpoint_of_another_spec_is_never_resumed_and_says_so(inputs, unbroken, tmp_path):
    other = stopped(inputs, tmp_path).parent
    errors = train_step(inputs, tmp_path, seed=1, **UNEVEN)
    assert "not resumed, because these changed: spec.seed; to delete them: rm -r" in errors
    assert other.exists() and json.loads((tmp_path / "train.json").read_text())["resumed_from"] == []
    assert sha256(tmp_path / "model/latent.safetensors") != sha256(unbroken / "model/latent.safetensors")


def test_work_of_other_code_is_resumed_on_purpose_alone(inputs, unbroken, tmp_path):
    """A folder that other code began: named with the change and the commands that adopt it; these do."""
    own = stopped(inputs, tmp_path).parent
    begun = json.loads((own / IDENTITY).read_text())
    begun["modules"]["model/policy.py"] = "0"
    begun["versions"]["torch"] = "2.0.0"
    write_json(own / IDENTITY, begun)
    own.rename(own.with_name("before"))
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
    errors = train_step(inputs, tmp_path, expect=85, environment=soon, **UNEVEN)
    assert "resuming" not in errors
    pattern = "because these changed: (.*?); .* stop this job and run: (.*?); to delete"
    change, command = re.search(pattern, errors).groups()
    assert change == "modules.model/policy.py, versions.torch"
    subprocess.run(command, shell=True, check=True)
    errors = train_step(inputs, tmp_path, **UNEVEN)
    assert "resuming on purpose, though these changed: modules.model/policy.py" in errors
    assert json.loads((tmp_path / "train.json").read_text())["changed_since_start"] == change.split(", ")
    assert_same_run(unbroken, tmp_path)


def test_execution_settings_may_change_between_attempts(inputs, unbroken, tmp_path):
    """The same training in other micro-batches, with other logging and saving: resumed, equal but for rounding."""
    stopped(inputs, tmp_path)
    changed = UNEVEN | {"micro_batch_size": 4, "save_minutes": 60, "gradient_checkpointing": True, "logging_steps": 2}
    assert "resuming from checkpoint-" in train_step(inputs, tmp_path, **changed)
    assert [line["step"] for line in lines_of(tmp_path)[-4:]] == [12, 14, 16, 18]
    a, b = (safetensors.torch.load_file(f / "model/latent.safetensors") for f in (unbroken, tmp_path))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_a_sharded_checkpoint_is_not_read_by_a_training_of_whole_copies(inputs, tmp_path):
    complete = stopped(inputs, tmp_path) / "complete.json"
    write_json(complete, json.loads(complete.read_text()) | {"sharded": True})
    errors = train_step(inputs, tmp_path, expect=1, **UNEVEN)
    assert "saved by a sharded one, but this training is one of whole copies; launch it as before" in errors
