"""Evaluation on validation pairs during training: its measures, the best model, and the early stop."""

import functools

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import (
    LATENT,
    TOKENS,
    TRAINING,
    make_base,
    run,
    scores_of,
)
from test_trainer import tensorboard_values
from tiny import make_pairs, make_tokenizer

from lpc import latents
from lpc.cli import UserError
from lpc.config.models import Training
from lpc.data.tokens import PairTokens, tokenize_pairs
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.training.evaluate import Evaluate
from lpc.training.train import training_arguments

EXACT = {"kind": "exact", "codes": 4, "code_scale": 0.5, "learning_rate": 1e-2}


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
