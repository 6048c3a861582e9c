"""Evaluation on validation pairs during training: its measures, the best model, the early stop, and exact resumes."""

import functools
import json
import signal

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from small import (
    LATENT,
    OBJECTIVES,
    TOKENS,
    TRAINING,
    UNEVEN,
    make_base,
    run,
    start_and_wait_for_step,
    train_step,
    train_step_together,
)
from test_checkpoints import assert_same_run
from test_trainer import tensorboard_values
from tiny import make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.cli import UserError
from lpc.config.models import Tokens, Training
from lpc.data.tokens import PairTokens, tokenize_pairs
from lpc.evaluation.preference import score_pairs
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.scoring import load_pairs
from lpc.training.evaluate import Evaluate
from lpc.training.train import training_arguments

EXACT = {"kind": "exact", "codes": 4, "code_scale": 0.5, "learning_rate": 1e-2}
SETTINGS = UNEVEN | {"evaluate": {"steps": 2, "best_by": "loss"}}


@pytest.fixture(scope="module")
def evaluated(split_inputs, tmp_path_factory):
    """The folder of a training with evaluation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert "12 validation pairs tokenised" in train_step(split_inputs, folder, **SETTINGS)
    return folder


@functools.cache
def validation() -> PairTokens:
    """20 validation pairs, others than those of the training; four have their labels swapped."""
    table = make_pairs(20, seed=5).to_pylist()
    for row in table[:4]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    tokens = tokenize_pairs(pa.Table.from_pylist(table), make_tokenizer(), **TOKENS)
    none = np.zeros(len(tokens), bool)
    tokens.reference, _ = reference_logps(LatentPolicy(make_base()), tokens, none, batch_size=16, precision="float32")
    return tokens


def scores_of(policy: LatentPolicy, pairs: PairTokens) -> dict:
    dpo = objectives.parse(OBJECTIVES["dpo"])
    return score_pairs(policy, pairs, None, dpo, batch_size=5, precision="float32")


@pytest.mark.parametrize(
    ("latent", "by"),
    [(None, "accuracy"), (None, "loss"), (LATENT, "loss"), (LATENT | {"inference": "mode"}, "loss"), (EXACT, "loss")],
    ids=["plain-accuracy", "plain", "lpc", "lpc-mode", "exact"],
)
def test_the_finished_model_is_the_best_by_the_measures_of_the_step_preference(tmp_path, latent, by):
    """Its accuracy and DPO's −log σ of the reward margin, with z from the prior, over two micro-batches a step."""
    evaluate = {"steps": 2, "best_by": by}
    settings = {"epochs": 3, "learning_rate": 3e-2, "evaluate": evaluate, "validation": validation()}
    policy = LatentPolicy(make_base())
    if latent is not None:
        policy.latent = latents.build(latents.parse(latent), 32, 0)

        def posterior(*states):
            raise AssertionError("the posterior sees which completion won")

        policy.latent.posterior_z = posterior
    trainer, _ = run(tmp_path, policy=policy, **settings)
    evaluations = trainer.totals["evaluations"]
    assert [result["step"] for result in evaluations] == [2, 4, 6, 8, 9]
    order = {"loss": lambda result: result["loss"], "accuracy": lambda result: -result["accuracy"]}[by]
    best = min(evaluations, key=order)
    assert trainer.totals["best_step"] == best["step"]
    scores = scores_of(trainer.policy, validation())
    margins = torch.tensor(scores["chosen_reward"] - scores["rejected_reward"])
    assert best["pairs"] == 20
    assert best["accuracy"] == (margins > 0).double().mean().item()
    assert best["loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-5)


def test_evaluation_alone_changes_no_weight_and_no_line(tmp_path):
    plain, lines = run(tmp_path / "plain", latent=LATENT)
    settings = {"evaluate": {"steps": 2}, "validation": validation()}
    evaluated, same = run(tmp_path / "evaluated", latent=LATENT, **settings)
    assert "evaluations" not in plain.totals and len(evaluated.totals["evaluations"]) == 3
    assert "best_step" not in evaluated.totals
    for a, b in zip(plain.policy.parameters(), evaluated.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [line["loss"] for line in lines] == [line["loss"] for line in same]
    curve = [result["accuracy"] for result in evaluated.totals["evaluations"]]
    assert tensorboard_values(tmp_path / "evaluated/tensorboard", "eval/accuracy") == pytest.approx(curve)


def test_training_stops_when_nothing_improves(tmp_path):
    """The first of 18 steps is the best by far: three more evaluations, then the end; its line is written."""
    settings = {"epochs": 6, "learning_rate": 1.0, "logging_steps": 3, "validation": validation()}
    evaluate = {"steps": 2, "best_by": "loss", "patience": 3}
    trainer, lines = run(tmp_path, evaluate=evaluate, **settings)
    losses = [result["loss"] for result in trainer.totals["evaluations"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 and trainer.state.global_step == 2 * len(losses) < 18
    assert lines[-1]["step"] == trainer.state.global_step and trainer.totals["best_step"] == 2 * (best + 1)


def test_the_first_of_equals_is_the_best_and_patience_counts_from_it():
    validation = Evaluate(steps=1, best_by="accuracy", patience=2).validation([], batch_size=1, precision="float32")
    results = [{"step": i, "accuracy": a, "loss": 1 - i} for i, a in enumerate((0.5, 0.75, 0.5, 0.75))]
    assert validation.best(results)["step"] == 1
    assert [validation.is_over(results[:count]) for count in (1, 2, 3, 4)] == [False, False, False, True]


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    broken = validation().part(0, 1)
    broken.reference = broken.reference * float("nan")
    with pytest.raises(UserError, match="step 2: the loss of validation pairs is nan"):
        run(tmp_path, evaluate={"steps": 2}, validation=broken)


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


def test_a_sharded_training_is_refused(split_inputs, tmp_path):
    environment = {"ACCELERATE_USE_FSDP": "true"}
    errors = train_step(split_inputs, tmp_path, expect=1, environment=environment, evaluate={"steps": 2})
    assert "error: training.evaluate: not with FSDP" in errors


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    training = Training(**TRAINING, trackers=["trackio"])
    monkeypatch.setattr("lpc.training.train.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"training\.trackers: trackio is not installed; run: pip install trackio"):
        training_arguments(training, seed=0, output_dir=tmp_path, processes=1)
    monkeypatch.setattr("lpc.training.train.find_spec", lambda name: name == "trackio")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert training_arguments(training, seed=0, output_dir=tmp_path, processes=1).report_to == [
        "tensorboard",
        "trackio",
    ]
