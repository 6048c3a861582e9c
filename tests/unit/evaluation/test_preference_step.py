"""The step preference: accuracies on validation and test pairs, and what is kept of each."""

import pyarrow as pa
import pytest
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import cli, objectives
from lpc.data.tokens import tokenize_pairs
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.evaluation.preference import score_pairs
from lpc.files import canonical, read_json, read_parquet, write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.steps import preference as step

SPEC = {"tokens": {"max_length": 64, "max_prompt_length": 32}, "precision": "float32", "batch_size": 8}
OBJECTIVE = {"name": "simpo", "beta": 2.0, "margin": 0.5}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(pairs, per-pair rewards, summary) of a plain run that never learned, 20 pairs a split."""
    folder = tmp_path_factory.mktemp("preference")
    make_backbone().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
    write_json(folder / "base.json", record)
    pairs = make_pairs(60, splits=("train", "validation", "test"))
    write_parquet(folder / "pairs.parquet", pairs)
    arguments = ["--spec", canonical({**SPEC, "objective": OBJECTIVE}), "--model", folder / "model"]
    arguments += ["--base", folder / "base.json", "--pairs", folder / "pairs.parquet"]
    arguments += ["--output", folder / "rewards.parquet", "--summary", folder / "summary.json"]
    step.main(cli.parse(step.parser(), [*map(str, arguments)]))
    return pairs, read_parquet(folder / "rewards.parquet"), read_json(folder / "summary.json")


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
