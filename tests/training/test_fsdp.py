"""Sharded training (FSDP2 on two gloo processes) against one process: the whole step, from the launch file's settings
to the finished model."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import STEP_LATENT, train_step, train_step_together
from small import lines_of, tokenised

from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps


def launch_file() -> dict[str, str]:
    """What `accelerate launch --config_file config/accelerate/fsdp.yaml` puts into the environment."""
    settings = yaml.safe_load((Path(__file__).parents[2] / "config/accelerate/fsdp.yaml").read_text())
    environment = {key.upper(): str(value).lower() for key, value in settings["fsdp_config"].items()}
    for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE"):
        environment[name] = environment[name].upper()
    return environment | {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": settings["mixed_precision"]}


# In bfloat16 a log-probability of a completion is a sum of some 20 numbers with errors near 0.02 each, which beta = 0.1
# makes 0.01 in a margin. Two processes add up gradients in another order, and training carries both on.
EXACT = {"kind": "exact", "codes": 4, "group_size": 2, "code_scale": 0.5}
HEADS = EXACT | {"kind": "heads", "rank": 2}


@pytest.mark.parametrize(
    ("precision", "tolerance", "latent"),
    [
        pytest.param(precision, tolerance, latent, id=f"{precision}-{name}")
        for precision, tolerance in (("float32", 1e-4), ("bfloat16", 0.02))
        for name, latent in (("plain", None), ("lpc", STEP_LATENT), ("exact", EXACT), ("heads", HEADS))
        if name in ("lpc", "exact") or precision == "float32"  # bfloat16 of a plain model is in both of these
    ],
)
def test_a_sharded_training_is_that_of_one_process(inputs, tmp_path, precision, tolerance, latent):
    """Losses, norms and the finished model, with micro-batches, and a stop and resume after the first step."""
    settings = {"precision": precision, "latent": latent, "micro_batch_size": 4, "gradient_checkpointing": True}
    train_step(inputs, tmp_path / "one", **settings)
    sharded = {"module": "sharded_step", **settings}
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
    train_step_together(inputs, tmp_path / "two", expect=85, environment=launch_file() | soon, **sharded)
    (checkpoint,) = (tmp_path / "two").glob("checkpoints/*/checkpoint-1")
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir(), "the model was not sharded"
    assert "resuming from checkpoint-1" in train_step_together(
        inputs, tmp_path / "two", environment=launch_file(), **sharded
    )

    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "objective", "margin", "grad_norm", "h_norm"):
            assert b[key] == pytest.approx(a[key], rel=tolerance, abs=tolerance), (a["step"], key)
    if latent is None:
        # Before the first update the policy is its reference, which was scored on one device.
        assert abs(two[0]["chosen_reward"]) < 1e-5 and abs(two[0]["rejected_reward"]) < 1e-5
    tokens = tokenised()
    scores = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        policy = LatentPolicy.from_pretrained(folder / "model").eval()
        scores.append(reference_logps(policy, tokens, np.ones(48, bool), batch_size=16, precision="float32")[0])
    start = tokens.reference
    assert np.abs(scores[0] - start).mean() > 1  # training moved them
    np.testing.assert_allclose(scores[0] - start, scores[1] - start, atol=20 * tolerance)
    assert json.loads((tmp_path / "two/train.json").read_text())["processes"] == 2


def test_more_processes_than_rows_of_a_parameter(inputs, tmp_path):
    """Two codes on three processes: the last holds no row of them, and must neither lose nor confuse a parameter."""
    latent = {"kind": "exact", "codes": 2, "code_scale": 0.5, "codebook_learning_rate": 3e-2}
    settings = {"latent": latent, "micro_batch_size": 4, "batch_size": 12}
    train_step(inputs, tmp_path / "one", **settings)
    together = {"module": "sharded_step", "processes": 3, "environment": launch_file()}
    train_step_together(inputs, tmp_path / "three", **together, **settings)
    one, three = lines_of(tmp_path / "one"), lines_of(tmp_path / "three")
    assert [line["loss"] for line in three] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    codes = [LatentPolicy.from_pretrained(tmp_path / name / "model").latent.codebook for name in ("one", "three")]
    np.testing.assert_allclose(*(code.detach().numpy() for code in codes), rtol=1e-3, atol=1e-4)
