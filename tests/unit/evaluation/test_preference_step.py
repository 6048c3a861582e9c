"""The step preference: accuracies on validation and test pairs, and what is kept of each."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import cli, latents, objectives
from lpc.data.tokens import tokenize_pairs
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.evaluation.preference import score_pairs
from lpc.files import canonical, read_json, read_parquet, write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.steps import preference as step

SPEC = {"tokens": {"max_length": 64, "max_prompt_length": 32}, "precision": "float32", "batch_size": 8}
OBJECTIVE = {"name": "simpo", "beta": 2.0, "margin": 0.5}


def score(folder, latent=None, reference=None, splits=("train", "validation", "test"), **spec):
    """(pairs, per-pair rewards, summary) of a run that never learned, 60 pairs in these splits."""
    policy = LatentPolicy(make_backbone(), latent)
    policy.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
    write_json(folder / "base.json", record)
    pairs = make_pairs(60, splits=splits)
    write_parquet(folder / "pairs.parquet", pairs)
    arguments = ["--spec", canonical({**SPEC, "objective": OBJECTIVE, **spec}), "--model", folder / "model"]
    arguments += ["--base", folder / "base.json", "--pairs", folder / "pairs.parquet"]
    arguments += ["--output", folder / "rewards.parquet", "--summary", folder / "summary.json"]
    if reference is not None:
        lengths = tokenize_pairs(pairs, make_tokenizer(), **SPEC["tokens"])
        sides = {side: [len(ids) for ids in getattr(lengths, side)] for side in ("chosen", "rejected")}
        columns = {f"{side}_tokens": counts for side, counts in sides.items()}
        columns |= {f"{side}_logp": [reference(n) for n in counts] for side, counts in sides.items()}
        write_parquet(folder / "reference.parquet", pa.table({"pair_id": pairs["pair_id"], **columns}))
        arguments += ["--reference", folder / "reference.parquet"]
    step.main(cli.parse(step.parser(), [*map(str, arguments)]))
    return pairs, read_parquet(folder / "rewards.parquet"), read_json(folder / "summary.json")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return score(tmp_path_factory.mktemp("preference"))


def test_validation_has_its_accuracy_and_interval(scored):
    pairs, _, summary = scored
    rows = pairs.filter(pa.compute.equal(pairs["split"], "validation"))
    tokens = tokenize_pairs(rows, make_tokenizer(), **SPEC["tokens"])
    prompts = rows["prompt_id"].to_pylist()
    policy = LatentPolicy(make_backbone()).eval()
    rewards = score_pairs(policy, tokens, prompts, objectives.parse(OBJECTIVE), batch_size=8, precision="float32")
    expected = accuracy_interval(outcomes(rewards["chosen_reward"], rewards["rejected_reward"]), prompts)
    found = summary["validation"]
    assert (found["accuracy"], found["low"], found["high"]) == pytest.approx(tuple(expected))
    assert 0 < found["low"] < found["accuracy"] < found["high"] < 1 and found["n"] == 20


def test_rewards_are_kept_of_test_pairs_alone(scored):
    pairs, rewards, summary = scored
    of_test = pairs.filter(pa.compute.equal(pairs["split"], "test"))
    assert sorted(rewards["pair_id"].to_pylist()) == sorted(of_test["pair_id"].to_pylist())
    outcome = outcomes(rewards["chosen_reward"], rewards["rejected_reward"])
    assert summary["accuracy"] == pytest.approx(outcome.mean()) and summary["n"] == 20
    assert "inference" not in summary and "accuracy_log_ratio" not in summary


def test_how_often_the_longer_completion_has_the_higher_reward(scored):
    """Pairs of one length say nothing, and a tie of rewards counts one half."""
    outcome, longer = np.array([1.0, 0.0, 0.5, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.5, 0.0])
    assert step.prefers_longer(outcome, longer) == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert step.prefers_longer(np.ones(2), np.full(2, 0.5)) is None
    pairs, rewards, summary = scored
    assert summary["prefers_longer"] == pytest.approx(longer_preferred(pairs, rewards))
    assert "prefers_longer_zero" not in summary


def longer_preferred(pairs, rewards, variant=""):
    """The same share, pair by pair, of rewards without ties."""
    characters = {row["pair_id"]: len(row["chosen"]) - len(row["rejected"]) for row in pairs.to_pylist()}
    unequal = [row for row in rewards.to_pylist() if characters[row["pair_id"]]]
    chosen, rejected = f"chosen_reward{variant}", f"rejected_reward{variant}"
    return np.mean([(row[chosen] > row[rejected]) == (characters[row["pair_id"]] > 0) for row in unequal])


def test_pairs_for_testing_alone(tmp_path):
    _, rewards, summary = score(tmp_path, splits=("test",))
    assert len(rewards) == summary["n"] == 60 and "validation" not in summary


def test_accuracy_by_inference_and_by_equation_4(tmp_path):
    """One rule is the run's own. A reference of −900 nats a token makes equation 4 prefer the longer completion."""
    latent = latents.build(latents.parse({"codes": 4, "logit_scale": 10.0}), 32, seed=1)
    torch.nn.init.normal_(latent.codebook, std=2.0, generator=torch.Generator().manual_seed(1))
    inference = {"inference": "mode", "inference_seed": 3}
    pairs, rewards, summary = score(tmp_path, latent, lambda tokens: -900.0 * tokens, inference=inference)
    for found in (summary, summary["validation"]):
        by_rule = found["inference"]["accuracy"]
        assert found["inference"]["default"] == "mode" and by_rule["mode"] == found["accuracy"]
        assert set(by_rule) == {"mean", "mode", "sample", "gumbel", "mixture"} and len(set(by_rule.values())) > 1
    expected = outcomes(rewards["chosen_reward_by_sample"], rewards["rejected_reward_by_sample"]).mean()
    assert summary["inference"]["accuracy"]["sample"] == pytest.approx(expected)
    of_test = pairs.filter(pa.compute.equal(pairs["split"], "test"))
    tokens = tokenize_pairs(of_test, make_tokenizer(), **SPEC["tokens"])
    longer = outcomes([len(ids) for ids in tokens.chosen], [len(ids) for ids in tokens.rejected])
    decided = longer[longer != 0.5].sum()
    assert decided <= summary["accuracy_log_ratio"] * 20 <= decided + (longer == 0.5).sum()
    assert summary["accuracy_log_ratio"] != summary["accuracy"]
    assert summary["prefers_longer_zero"] == pytest.approx(longer_preferred(pairs, rewards, "_zero"))
