"""What a training takes for its own work: its identity, and what it finds in its folder."""

import json
import signal
from types import SimpleNamespace

import pytest
from small import TRAINING

from lpc.cli import UserError
from lpc.config.specs import Train
from lpc.files import fingerprint, write_json
from lpc.steps.train import finished
from lpc.training.checkpoints import IDENTITY, TOKENS, Checkpointing, prepare
from lpc.training.identity import changes, identity


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
