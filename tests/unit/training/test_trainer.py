"""The trainer: the loss and its checks, what is logged, and that neither micro-batches nor checkpointing change it."""

import contextlib
import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import LATENT, make_base, run, tokenised

from lpc import latents
from lpc.cli import UserError
from lpc.latents.base import LatentStep
from lpc.model.policy import LatentPolicy
from lpc.training.checkpoints import Checkpointing
from lpc.training.trainer import PreferenceTrainer, squared_sizes

spec = importlib.util.spec_from_file_location("first_batch", Path(__file__).parents[3] / "benchmarks/first_batch.py")
first_batch = importlib.util.module_from_spec(spec)
sys.modules["first_batch"] = first_batch  # a dataclass looks its module up
spec.loader.exec_module(first_batch)

GROUPED = {"kind": "exact", "codes": 5, "group_size": 4, "prior": "shared", "code_scale": 0.5, "learning_rate": 1e-2}


@pytest.mark.parametrize("name,expected", [("dpo", np.log(2)), ("ipo", 25.0)])
@pytest.mark.parametrize("latent", [None, LATENT])
def test_the_first_loss_is_known_and_training_learns(tmp_path, name, expected, latent):
    _, lines = run(tmp_path, name, latent)
    assert lines[0]["objective"] == pytest.approx(expected, rel=0.01 if latent else 1e-5)
    assert lines[-1]["objective"] < 0.8 * lines[0]["objective"] and lines[-1]["accuracy"] > 0.9
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_the_loss_holds_what_the_objective_adds_to_it(tmp_path):
    """One batch of all pairs, at the start: mean −log π / tokens of the chosen completions, of the reference still."""
    tokens = tokenised()
    nll = np.mean([-logp / len(ids) for logp, ids in zip(tokens.reference[:, 0], tokens.chosen, strict=True)])
    settings = {"name": "dpo", "nll_weight": 0.5}
    _, lines = run(tmp_path, settings, tokens=tokens, batch_size=48, epochs=1)
    assert lines[0]["loss"] - lines[0]["objective"] == pytest.approx(0.5 * nll, rel=1e-5)
    assert lines[0]["objective"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["lpc", "mlp"])
def test_the_backbone_waits_for_the_latent(tmp_path, monkeypatch, kind):
    """latent_first 0.5 of 6 steps: the backbone is the base's for three steps, with no moments kept, then learns."""
    latent = {"kind": kind, "codes": 6, "learning_rate": 1e-3, "latent_first": 0.5}
    base = {name: p.clone() for name, p in make_base().named_parameters()}
    moved = []

    def watch(self, args, state, control, model=None, optimizer=None, **kwargs):
        parameters = dict(model.backbone.named_parameters())
        moved.append(
            (
                any(not torch.equal(p, base[name]) for name, p in parameters.items()),
                sum(p in optimizer.optimizer.state for p in parameters.values()) / len(parameters),
                all(p in optimizer.optimizer.state for p in model.latent.parameters()),
            )
        )

    monkeypatch.setattr(Checkpointing, "on_step_end", watch)
    _, lines = run(tmp_path, latent=latent, weight_decay=0.1)
    assert moved == [(False, 0, True)] * 3 + [(True, 1, True)] * 3
    assert lines[0]["grad_norm"] < 0.5 * lines[3]["grad_norm"]


def test_no_backward_pass_through_a_backbone_that_waits(tmp_path, monkeypatch):
    latent = LATENT | {"latent_first": 0.5}
    with monkeypatch.context() as patch:  # as on several processes
        patch.setattr(PreferenceTrainer, "_frozen_backbone", contextlib.nullcontext)
        _, expected = run(tmp_path / "with", latent=latent)
    needed, count = [], PreferenceTrainer._count

    def watch(self, *values):
        needed.append(values[-2].requires_grad)  # h_x
        count(self, *values)

    monkeypatch.setattr(PreferenceTrainer, "_count", watch)
    trainer, lines = run(tmp_path / "without", latent=latent)
    assert needed == [False] * 6 + [True] * 6  # of two micro-batches a step
    assert all(parameter.requires_grad for parameter in trainer.policy.backbone.parameters())
    for line, other in zip(lines, expected, strict=True):
        assert [line[name] for name in ("loss", "grad_norm")] == [other[name] for name in ("loss", "grad_norm")]


def test_a_latent_alone_leaves_the_base_as_it_was(tmp_path):
    trainer, _ = run(tmp_path, latent=LATENT | {"latent_first": 1.0})
    for name, p in make_base().named_parameters():
        assert torch.equal(dict(trainer.policy.backbone.named_parameters())[name], p), name


def test_log_lines_hold_what_a_person_needs(tmp_path):
    _, lines = run(tmp_path, latent=LATENT)
    keys = {
        "loss",
        "objective",
        "kl",
        "chosen_reward",
        "rejected_reward",
        "margin",
        "accuracy",
        "gamma",
        "z_norm",
        "z_to_h",
        "z_to_logits",
    }
    keys |= {"h_norm", "grad_norm", "learning_rate", "prior_perplexity", "posterior_perplexity", "memory_gib"}
    keys |= {"mean_prior_perplexity", "tokens_per_second", "epoch", "step", "temperature"}
    assert set(lines[0]) == keys
    assert [line["gamma"] for line in lines] == pytest.approx([i / 5 for i in range(6)])
    for line in lines:
        assert line["loss"] == pytest.approx(line["objective"] + LATENT["kl_weight"] * line["kl"], rel=1e-5)
        assert 1 <= line["prior_perplexity"] <= line["mean_prior_perplexity"] * 1.0001 <= 6.001
    assert tensorboard_values(tmp_path / "tensorboard", "train/kl") == pytest.approx([x["kl"] for x in lines], rel=1e-5)


def tensorboard_values(folder: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


@pytest.mark.parametrize("latent", [None, LATENT])
def test_a_reference_of_another_model_is_noticed_at_once(tmp_path, latent):
    with pytest.raises(UserError, match=r"first batch: the policy's log-probabilities differ from the reference by"):
        run(tmp_path, latent=latent, tokens=tokenised(seed=1))


def test_a_reference_may_differ_by_rounding_alone(tmp_path):
    """By 0.01 nats per token: rounding in bfloat16, another model in float32."""
    tokens = copy.copy(tokenised("bfloat16"))
    lengths = np.array([[len(a), len(b)] for a, b in zip(tokens.chosen, tokens.rejected, strict=True)])
    tokens.reference = tokens.reference + 0.01 * lengths
    run(tmp_path / "a", tokens=tokens, precision="bfloat16", epochs=1)
    with pytest.raises(UserError, match=r"by 0\.01.* nats per token, above 0\.001"):
        run(tmp_path / "b", tokens=tokens, epochs=1)


def test_a_latent_that_starts_large_is_warned_about(tmp_path, caplog):
    trainer, _ = run(tmp_path, latent=LATENT | {"code_scale": 3.0}, epochs=1)
    assert "the policy starts away from its reference" in caplog.text
    assert trainer.totals["first_z_nats_per_token"] > 0.1


@pytest.mark.parametrize("kind", ["lpc", "exact"])
def test_z_has_the_same_size_on_bases_of_any_scale(tmp_path, kind):
    """The base with hidden states four times as large, and a head that makes up for it: the first line is the same."""
    found = []
    for factor in (1.0, 4.0):
        policy = LatentPolicy(make_base())
        with torch.no_grad():
            policy.backbone.model.norm.weight.mul_(factor)
            policy.head.weight.div_(factor)
        settings = latents.parse({"kind": kind, "codes": 6, "code_scale": 0.3, "standardize": True})
        policy.latent = latents.build(settings, 32, 0)
        # As the base's statistics are: the MLPs see the same.
        names = [f"{part}.{moment}" for part in ("prompt", "completion") for moment in ("mean", "std")]
        policy.latent.start_from({name: torch.full((32,), factor * name.endswith("std")) for name in names}, seed=0)
        policy.latent.rescale(policy.logit_unit())
        _, lines = run(tmp_path / str(factor), policy=policy, epochs=1)
        found.append([lines[0][name] for name in ("z_to_h", "z_to_logits")])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and min(found[0]) > 0.01


def test_sizes_of_z_by_hand():
    """Of logits over the whole vocabulary; of a mixture the mean over its codes."""
    policy, h = LatentPolicy(make_base()), torch.randn(3, 32)
    spread = lambda v: (v @ policy.head.weight.t()).var(-1, correction=0)  # noqa: E731
    for codes in (None, torch.randn(6, 32)):
        step = LatentStep(torch.randn(3, 32), torch.zeros(3), torch.randn(3, 6), codes=codes)
        with torch.no_grad():
            found = squared_sizes(step, h, policy.logit_covariance())
            of_z = step.z.square().mean(-1), spread(step.z)
            if codes is not None:
                p, e = step.prior_logits.softmax(-1), codes
                of_z = p @ e.square().mean(-1), p @ spread(e)
            expected = [*of_z, h.square().mean(-1), spread(h)]
        assert list(found) == ["z_square", "z_variance", "h_square", "h_variance"]
        for one, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_latent_that_outgrows_the_model_or_stays_unseen_is_warned_about(tmp_path, caplog):
    """Once, where it happens; and at the end."""
    _, lines = run(tmp_path / "a", latent=LATENT | {"code_scale": 30.0}, epochs=1)
    assert caplog.text.count("text follows the latent alone") == 1 and lines[0]["z_to_logits"] > 1
    caplog.clear()
    _, lines = run(tmp_path / "b", latent=LATENT | {"code_scale": 1e-4, "codebook_learning_rate": 1e-6}, epochs=1)
    assert caplog.text.count("the latent is not used") == 1 and 0 < lines[-1]["z_to_logits"] < 1 / 256
    caplog.clear()
    _, lines = run(tmp_path / "c", latent=LATENT | {"code_scale": 0.5}, epochs=1)
    assert all(1 / 256 < line["z_to_logits"] < 1 and 0 < line["z_to_h"] < 1 for line in lines)
    assert "z adds logits" not in caplog.text


def test_recipes_pass_the_first_batch_at_the_width_of_an_8b_model():
    """Width 4,096, DPO and IPO: z moves the loss, and the check fires for the reference of another base alone.

    `benchmarks/first_batch.py` does it for many seeds.
    """
    found = list(first_batch.outcomes(0, precisions=("float32",), width=64, head_dim=256))
    assert [outcome.own for outcome in found] == ["", ""]
    assert all("first batch: the policy's log-probabilities differ from the reference by" in o.other for o in found)
    assert {o.recipe: o.moved > 0.001 for o in found}["ipo-lpc"]


def test_a_dead_posterior_is_noticed_at_once(tmp_path):
    """A posterior whose parameters are frozen by mistake."""
    policy = LatentPolicy(make_base())
    policy.latent = latents.build(latents.parse(LATENT), 32, 0)
    for parameter in policy.latent.posterior.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="no gradient reaches the posterior"):
        run(tmp_path, policy=policy)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"lower the learning rate|not finite"):
        run(tmp_path, "ipo", learning_rate=1e30, epochs=4)


@pytest.mark.parametrize("latent", [None, LATENT, GROUPED])
def test_micro_batches_do_not_change_the_run(tmp_path, latent):
    """The global batch is what counts: 16 pairs at once, or 4 times 4."""
    tokens = tokenised()
    _, whole = run(tmp_path / "a", latent=latent, tokens=tokens, micro_batch_size=16)
    _, parts = run(tmp_path / "b", latent=latent, tokens=tokens, micro_batch_size=4)
    for a, b in zip(whole, parts, strict=True):
        for key in ("loss", "margin", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6)


def test_gradient_checkpointing_does_not_change_the_run(tmp_path):
    _, plain = run(tmp_path / "a", latent=LATENT)
    _, checkpointed = run(tmp_path / "b", latent=LATENT, gradient_checkpointing=True)
    assert [x["loss"] for x in plain] == pytest.approx([x["loss"] for x in checkpointed], rel=1e-6)


def test_bfloat16_follows_float32(tmp_path):
    """Autocast training needs its reference in the same precision; then it learns alike."""
    tokens = tokenised("bfloat16")
    _, lines = run(tmp_path, latent=LATENT, tokens=tokens, precision="bfloat16")
    assert lines[0]["objective"] == pytest.approx(np.log(2), rel=0.01) and lines[-1]["accuracy"] > 0.9
