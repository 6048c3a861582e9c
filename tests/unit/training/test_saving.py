"""The finished model."""

import numpy as np
import torch
from small import LATENT, make_base, run, tokenised

from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.training.saving import rounded_state


def test_the_finished_model_scores_as_the_trainer_left_it(tmp_path):
    """save_pretrained after training and from_pretrained give the trainer's own log-probabilities."""
    tokens = tokenised()
    trainer, _ = run(tmp_path, latent=LATENT, tokens=tokens)
    trainer.policy.save_pretrained(tmp_path / "model")
    loaded = LatentPolicy.from_pretrained(tmp_path / "model")
    options = {"batch_size": 16, "precision": "float32"}
    everything = np.ones(len(tokens), bool)
    a, _ = reference_logps(trainer.policy.eval(), tokens, everything, **options)
    b, _ = reference_logps(loaded.eval(), tokens, everything, **options)
    assert np.array_equal(a, b)


def test_training_that_rounding_undoes_is_counted_and_warned_about(tmp_path, caplog):
    """A peak rate of 5e-7 moves most weights by less than half a step of bfloat16."""
    make_base().save_pretrained(tmp_path / "base")
    base = {"path": str(tmp_path / "base"), "dtype": "bfloat16", "trust_remote_code": False}
    trainer, _ = run(tmp_path, learning_rate=5e-7)
    weights = {name: p.detach().clone() for name, p in trainer.policy.backbone.named_parameters()}
    start = dict(make_base().named_parameters())
    moved = sum((weights[name] != start[name]).sum().item() for name in start)
    undone = sum(((w != start[n]) & (w.bfloat16().float() == start[n])).sum().item() for n, w in weights.items())
    state, record = rounded_state(trainer, base, torch.bfloat16)
    assert record["moved"] == moved / sum(w.numel() for w in weights.values()) and record["undone"] == undone / moved
    assert record["undone"] > 0.5 and "set training.save_dtype" in caplog.text
    assert record["pairs"] == 48 and 0 < record["margin"]["after"] < 0.9 * record["margin"]["before"]
    assert all(value.dtype == torch.bfloat16 for value in state.values())
    for name, parameter in trainer.policy.backbone.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16().float())
