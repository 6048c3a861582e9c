"""The training step as a process of its own: what it saves, what it resumes, and what it never takes for its own."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from small import TRAINING, UNEVEN, lines_of, start_and_wait_for_step, train_step

from lpc.cli import UserError
from lpc.config.specs import Train
from lpc.files import fingerprint, sha256, write_json
from lpc.steps.train import finished
from lpc.training.checkpoints import IDENTITY, TOKENS, Checkpointing, prepare
from lpc.training.identity import changes, identity


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


def test_a_second_interrupt_stops_at_once():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        saving = Checkpointing(trainer=None, save_minutes=60)
        signal.raise_signal(signal.SIGINT)
        assert saving.signalled == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def test_checkpoints_of_another_run_are_refused_even_in_this_ones_place(tmp_path):
    before, now = ({"spec": {"seed": seed}, "modules": {}} for seed in (0, 1))
    write_json(tmp_path / fingerprint(now) / IDENTITY, before)
    with pytest.raises(UserError, match=r"another run \(spec\.seed differ\)"):
        prepare(tmp_path, now)


def test_tokens_of_every_earlier_attempt_are_deleted(tmp_path):
    """They can be made again, and nobody else would delete those of a run that is never resumed."""
    before, now = ({"spec": {"seed": seed}, "modules": {}} for seed in (0, 1))
    for one in (before, now):
        (tmp_path / fingerprint(one) / TOKENS).mkdir(parents=True)
    prepare(tmp_path, now)
    assert not list(tmp_path.glob(f"*/{TOKENS}"))


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


def test_identity_covers_all_that_weights_depend_on_and_nothing_else(tmp_path, inputs):
    def spec(latent=None, **training) -> Train:
        whole = {"objective": {"name": "dpo"}, "latent": latent, "training": TRAINING | training}
        return Train.parse(whole, {})

    files = {"base": inputs / "base.json", "pairs": inputs / "pairs.parquet", "statistics": None}
    files["reference"] = inputs / "reference-float32.parquet"
    now = identity(spec(), **files)
    assert "training/trainer.py" in now["modules"] and "report/page.py" not in now["modules"]
    assert "objectives/dpo.py" in now["modules"] and not {"objectives/ipo.py", "latents/lpc.py"} & set(now["modules"])
    execution = {"micro_batch_size": 2, "save_minutes": 3.0, "logging_steps": 3, "gradient_checkpointing": True}
    execution |= {"attention": "flex", "trackers": ["wandb"]}
    assert identity(spec(**execution), **files) == now
    assert changes(now, identity(spec(epochs=3), **files)) == ["spec.training.epochs"]
    record = json.loads((inputs / "base.json").read_text())
    write_json(tmp_path / "base.json", record | {"chat_template": "{{ messages }}"})
    assert changes(now, identity(spec(), **files | {"base": tmp_path / "base.json"})) == ["loading.chat_template"]
    evaluated = changes(now, identity(spec(evaluate={"steps": 5}), **files))
    assert {"spec.training.evaluate.steps", "modules.evaluation/preference.py"} <= set(evaluated)
    assert not {"evaluate", "trackers"} & set(now["spec"]["training"])  # runs are older than these keys
    with_latent = identity(spec({"inference": "mode"}), **files)
    assert with_latent == identity(spec({"inference": "mean"}), **files)
    assert "latents/lpc.py" in with_latent["modules"]
    other = files | {"reference": inputs / "reference-bfloat16.parquet"}
    assert changes(now, identity(spec(), **other)) == ["reference"]


def test_the_second_job_takes_no_model_of_other_code(tmp_path):
    (tmp_path / "model").mkdir()
    args = SimpleNamespace(output=tmp_path / "model", summary=tmp_path / "train.json")
    write_json(args.summary, {"identity": {"modules": {"a.py": "1"}}})
    assert finished(args, {"modules": {"a.py": "1"}}) and not finished(args, {"modules": {"a.py": "2"}})
