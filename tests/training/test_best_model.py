"""Evaluation during the training step: the best model after a kill, on two processes, and of adapters."""

import json
import signal

import pytest
import safetensors.torch
import torch
from processes import assert_same_run, start_and_wait_for_step, train_step, train_step_together
from small import LATENT, TOKENS, UNEVEN, scores_of
from tiny import make_tokenizer

from lpc.config.models import Tokens
from lpc.model.policy import LatentPolicy
from lpc.scoring import load_pairs

SETTINGS = UNEVEN | {"evaluate": {"steps": 2, "best_by": "loss"}}


@pytest.fixture(scope="module")
def evaluated(split_inputs, tmp_path_factory):
    """The folder of a training with evaluation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert "12 validation pairs tokenised" in train_step(split_inputs, folder, **SETTINGS)
    return folder


def test_a_killed_run_keeps_its_best_model(split_inputs, evaluated, tmp_path):
    """SIGKILL after the best evaluation: the checkpoint's link replaces what lies beside it, and all is bit-equal."""
    step = start_and_wait_for_step(split_inputs, tmp_path, 11, **SETTINGS)
    step.send(signal.SIGKILL)
    step.wait()
    (best,) = tmp_path.glob("checkpoints/*/best.safetensors")
    copies = list(tmp_path.glob("checkpoints/*/checkpoint-*/best.safetensors"))
    assert copies and all(copy.samefile(best) for copy in copies)  # one file on the disk
    best.unlink()
    best.write_bytes(b"of a later step, which the killed process did not save")
    assert "resuming from checkpoint-" in train_step(split_inputs, tmp_path, **SETTINGS)
    whole, killed = (json.loads((folder / "train.json").read_text()) for folder in (evaluated, tmp_path))
    assert whole["evaluations"] == killed["evaluations"] and [e["pairs"] for e in whole["evaluations"]] == [12] * 9
    assert whole["best_step"] == killed["best_step"] < 11
    assert_same_run(evaluated, tmp_path)


def test_two_processes_evaluate_as_one(split_inputs, evaluated, tmp_path):
    train_step_together(split_inputs, tmp_path, **SETTINGS)
    one, two = (json.loads((folder / "train.json").read_text()) for folder in (evaluated, tmp_path))
    assert one["best_step"] == two["best_step"]
    for a, b in zip(one["evaluations"], two["evaluations"], strict=True):
        assert (a["step"], a["pairs"], a["accuracy"]) == (b["step"], b["pairs"], b["accuracy"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    a, b = (safetensors.torch.load_file(folder / "model/latent.safetensors") for folder in (evaluated, tmp_path))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_the_best_adapters_are_merged(split_inputs, tmp_path):
    """The best weights are those of adapters and latent alone; the finished model scores as that evaluation did."""
    pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[lora]'")
    settings = SETTINGS | {"lora": {"rank": 4}, "learning_rate": 3e-2, "latent": LATENT}
    step = start_and_wait_for_step(split_inputs, tmp_path, 3, **settings)
    step.send(signal.SIGKILL)
    step.wait()
    (best,) = tmp_path.glob("checkpoints/*/best.safetensors")
    names = safetensors.torch.load_file(best)
    assert names and all("lora" in name or name.startswith("latent.") for name in names)
    train_step(split_inputs, tmp_path, **settings)
    summary = json.loads((tmp_path / "train.json").read_text())
    best = next(e for e in summary["evaluations"] if e["step"] == summary["best_step"])
    assert best["step"] < 18
    policy = LatentPolicy.from_pretrained(tmp_path / "model").eval()
    reference = split_inputs / "reference-float32.parquet"
    _, pairs = load_pairs(
        split_inputs / "pairs.parquet", make_tokenizer(), Tokens(**TOKENS), split="validation", reference=reference
    )
    scores = scores_of(policy, pairs)
    margins = torch.tensor(scores["chosen_reward"] - scores["rejected_reward"])
    assert -torch.nn.functional.logsigmoid(margins).mean().item() == pytest.approx(best["loss"], rel=1e-3)


def test_a_sharded_training_with_evaluation_is_refused(split_inputs, tmp_path):
    environment = {"ACCELERATE_USE_FSDP": "true"}
    errors = train_step(split_inputs, tmp_path, expect=1, environment=environment, evaluate={"steps": 2})
    assert "error: training.evaluate: not with FSDP" in errors
