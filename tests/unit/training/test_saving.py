"""The finished model."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from small import LATENT, lines_of, make_base, run, tokenised, train_step
from tiny import make_backbone, make_tokenizer

from lpc.files import read_json, write_json
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


@pytest.mark.parametrize("save_dtype,expected", [(None, "bfloat16"), ("float32", "float32")])
def test_the_step_saves_in_the_type_asked_for_and_says_so(inputs, tmp_path, save_dtype, expected):
    """A base of tied embeddings in bfloat16: its config states the saved type, and what is tied is stored once."""
    tied = make_backbone(tie_word_embeddings=True).to(torch.bfloat16)
    tied.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    record = read_json(inputs / "base.json") | {"path": str(tmp_path / "base"), "dtype": "bfloat16"}
    write_json(tmp_path / "base.json", record)
    files = {"base": tmp_path / "base.json", "objective": "simpo"}
    train_step(inputs, tmp_path, latent=None, save_minutes=60, save_dtype=save_dtype, **files)
    weights = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{expected}"}
    assert "lm_head.weight" not in weights
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == expected
    summary = read_json(tmp_path / "train.json")
    assert (
        summary["parameters"] == sum(p.numel() for p in tied.parameters()) == sum(v.numel() for v in weights.values())
    )
    assert summary["saved"]["dtype"] == expected and ("undone" in summary["saved"]) == (expected == "bfloat16")
    assert summary["cut"] == tokenised().cut_shares()
    assert lines_of(tmp_path)
