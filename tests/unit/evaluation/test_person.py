"""A person's code: Bayes' rule, which pairs are scored, and a world whose tastes no prompt reveals."""

import copy
import math
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.cli import UserError
from lpc.config import specs
from lpc.config.models import Training
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.evaluation.person import (
    code_accuracy,
    code_agreement,
    code_rewards,
    code_shares,
    context_first,
    person_codes,
    personal_accuracy,
    score_codes,
    score_posteriors,
)
from lpc.evaluation.preference import accuracy, score_pairs
from lpc.files import canonical, read_json, write_json, write_parquet
from lpc.latents.parts.mixture import infer_code
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.steps import personalise as step
from lpc.training.train import train

TOKENS = {"max_length": 64, "max_prompt_length": 32}
DPO = {"name": "dpo", "beta": 0.5}


def test_bayes_rule_by_hand():
    """Prior 1/4 and 3/4, two pairs with likelihoods .9/.2 and .8/.5: .18 against .075."""
    log_prior = torch.tensor([[0.25, 0.75]]).log()
    losses = -torch.tensor([[0.9, 0.2], [0.8, 0.5]]).log()
    found = infer_code(log_prior, log_prior.expand(2, 2), losses)
    torch.testing.assert_close(found.exp(), torch.tensor([[0.18, 0.075]]) / 0.255)
    torch.testing.assert_close(infer_code(log_prior, log_prior[:0], losses[:0]), log_prior)


def test_prior_of_a_prompt_and_its_context_is_their_geometric_mean():
    """Priors .2 : .8 and .5 : .5 of the context, .8 : .2 and .5 : .5 of two prompts; a pair that tells nothing."""
    context = torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log()
    found = infer_code(torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log(), context, torch.zeros(2, 2))
    second = torch.tensor([0.05, 0.2]) ** (1 / 3)
    torch.testing.assert_close(found.exp(), torch.stack([torch.tensor([0.5, 0.5]), second / second.sum()]))


def test_many_pairs_do_not_underflow():
    losses = torch.tensor([[2000.0, 2001.0]]).expand(1000, 2)
    found = infer_code(torch.tensor([[0.5, 0.5]]).log(), torch.full((1000, 2), 0.5).log(), losses)
    torch.testing.assert_close(found, torch.tensor([[0.0, -1000.0]]))


def made_scores(people: int, each: int, seed: int = 0):
    """Scores under two codes, opposite tastes of even and odd people: the right code prefers the chosen completion."""
    groups = [f"person-{i % people}" for i in range(people * each)]
    taste = torch.tensor([i % people % 2 for i in range(people * each)])
    margins = torch.where(torch.arange(2) == taste[:, None], 2.0, -2.0).double()
    margins *= 1 + torch.rand(len(groups), 1, generator=torch.Generator().manual_seed(seed)).double()
    prior = torch.tensor([0.6, 0.4]).double().log().expand(len(groups), 2)
    losses = -torch.nn.functional.logsigmoid(margins)
    scores = {"log_prior": prior, "losses": losses, "chosen_rewards": margins / 2, "rejected_rewards": -margins / 2}
    return scores, groups, [f"pair-{i}" for i in range(len(groups))]


def by_codes(scores, groups, pair_ids, *, contexts, seed):
    people = [*context_first(groups, pair_ids, contexts=contexts, seed=seed).values()]
    return personal_accuracy(code_rewards(scores, people, contexts), people)


def test_one_known_pair_tells_the_taste():
    """Without context the prior's favourite code is right for half of the people; .6 · σ against .4 · σ turns at 1."""
    found = by_codes(*made_scores(10, 6), contexts=[0, 1, 4], seed=0)
    assert [found[size]["accuracy"] for size in (0, 1, 4)] == [0.5, 1.0, 1.0]
    # Ten people of two pairs that are right or wrong together count ten times.
    assert found[0]["low"] < 0.25 and found[0]["high"] > 0.75


def test_known_pairs_are_never_scored():
    """Only one pair is right by its rewards: where it is context, nothing that is scored is right."""
    scores, groups, pair_ids = made_scores(4, 5)
    wrong = copy.deepcopy(scores)
    wrong["chosen_rewards"], wrong["rejected_rewards"] = -torch.ones(20, 2), torch.ones(20, 2)
    right = []
    for i in range(20):
        one = copy.deepcopy(wrong)
        one["chosen_rewards"][i] = 3.0
        found = by_codes(one, groups, pair_ids, contexts=[0, 2, 4], seed=0)
        assert len({value["accuracy"] for value in found.values()}) == 1, "all sizes are measured on the same pairs"
        right.append(found[0]["accuracy"] > 0)
    assert sum(right) == 4 and len({groups[i] for i in range(20) if right[i]}) == 4


def test_rows_may_come_in_any_order():
    scores, groups, pair_ids = made_scores(6, 7, seed=3)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in scores.items()}
    rest = [[values[i] for i in order] for values in (groups, pair_ids)]
    settings = {"contexts": [0, 1, 3], "seed": 0}
    assert by_codes(shuffled, *rest, **settings) == by_codes(scores, groups, pair_ids, **settings)


def test_groups_without_a_pair_to_score_are_left_out_and_counted():
    _, groups, pair_ids = made_scores(4, 5)
    groups[:2], groups[2] = ["alone", "alone"], None
    people = context_first(groups, pair_ids, contexts=[3], seed=0)
    assert sorted(people) == [f"person-{i}" for i in range(4)] and sorted(chain(*people.values())) == [*range(3, 20)]
    with pytest.raises(UserError, match="no group has more than 16 test pairs, the largest has 5"):
        context_first(groups, pair_ids, contexts=[0, 16], seed=0)
    with pytest.raises(UserError, match="the largest has 0"):
        context_first([None] * 20, pair_ids, contexts=[0], seed=0)


def test_codes_are_compared_with_sources():
    """Code k is right for the people of taste k and wrong for the others; one known pair names it, none does not."""
    scores, groups, pair_ids = made_scores(4, 5)
    sources = ["ab"[int(name[-1]) % 2] for name in groups]
    found = code_accuracy(scores, sources)
    assert [(row["code"], row["source"], row["pairs"], row["accuracy"]) for row in found] == [
        (0, "a", 10, 1.0), (0, "b", 10, 0.0), (1, "a", 10, 0.0), (1, "b", 10, 1.0),
    ]  # fmt: skip
    people = [*context_first(groups, pair_ids, contexts=[0, 1], seed=0).values()]
    assert code_agreement(scores, people, sources, [0, 1]) == {0: None, 1: 1.0}
    shares = code_shares(scores, people, sources, 1)
    assert list(shares) == ["a", "b"] and all(sum(share) == pytest.approx(1) for share in shares.values())
    first = [own[0] for own in people if sources[own[0]] == "a"]
    known = (scores["log_prior"][first] - scores["losses"][first]).softmax(-1)
    assert shares["a"] == pytest.approx(known.mean(0).tolist()) and shares["a"][0] > 0.5 > shares["b"][0]
    assert code_shares(scores, people, sources, 0) == {}
    mixed = [*sources[:-1], "a"]
    assert code_shares(scores, people, mixed, 1) == {}
    assert code_agreement(scores, people, mixed, [0, 1]) == {0: None, 1: None}


def test_the_code_of_a_person_by_hand():
    """Priors .2 : .8 and .5 : .5 of two known pairs have the geometric mean 1 : 2. Likelihoods .9/.6 and .8/.3 give
    .72 : .18, and the product is .72 : .36. The third pair is not known."""
    log_prior = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]]).double().log()
    losses = -torch.tensor([[0.9, 0.6], [0.8, 0.3], [0.01, 0.99]]).double().log()
    found = person_codes({"log_prior": log_prior, "losses": losses}, [[0, 1, 2]], 2)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3]]).double())


def test_z_of_a_person_is_that_of_the_product_of_posteriors():
    """Of a Gaussian latent: rewards with two known pairs are those of z made by hand, and none known is the prior."""
    table = world(3, 4, "test", 1)
    tokens = tokenize_pairs(table, make_tokenizer(), **TOKENS)
    latent = latents.build(latents.parse({"kind": "gaussian", "code_scale": 0.5, "group_size": 4}), 32, 0)
    policy = LatentPolicy(make_backbone(), latent).eval()
    everything = np.ones(len(tokens), bool)
    tokens.reference, _ = reference_logps(policy, tokens, everything, batch_size=64, precision="float32")
    how, objective = {"batch_size": 5, "precision": "float32"}, objectives.parse(DPO)
    people = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    found = score_posteriors(policy, tokens, objective, people, [0, 2], **how)
    prior = score_pairs(policy, tokens, table["prompt_id"].to_pylist(), objective, **how)
    np.testing.assert_allclose(found[0][0], prior["chosen_reward"], atol=1e-6)
    with torch.no_grad():
        batch = collate([tokens[i] for i in range(len(tokens))])
        encoded = policy.encode(**{name: batch[name] for name in MODEL_INPUTS})
        outputs = latent.posterior_outputs(encoded.h_chosen, encoded.h_rejected)
        mean, log_std = outputs.chunk(2, -1)
        precision = (-2 * log_std).exp()
        z = [(precision[own[:2]] * mean[own[:2]]).sum(0) / precision[own[:2]].sum(0) for own in people]
        z = torch.stack([0.5 * z[i % 3] for i in range(12)])
        _, chosen, rejected = objective.evaluate(*policy.pair_logps(encoded, z), batch)
    torch.testing.assert_close(found[2][0].float(), chosen)
    torch.testing.assert_close(found[2][1].float(), rejected)


def world(people: int, each: int, split: str, seed: int) -> pa.Table:
    """Even people prefer completions with "good", odd ones those with "bad"; prompts are random words."""
    table = make_pairs(people * each, seed=seed, splits=(split,)).to_pydict()
    table["group"] = [f"{split}-{i % people}" for i in range(people * each)]
    table["pair_id"] = [f"{split}-{name}" for name in table["pair_id"]]
    for i in range(people * each):
        if i % people % 2:
            table["chosen"][i], table["rejected"][i] = table["rejected"][i], table["chosen"][i]
    return pa.table(table)


def trained(folder: Path, latent: dict | None) -> LatentPolicy:
    tokens = tokenize_pairs(world(24, 16, "train", 0), make_tokenizer(), **TOKENS)
    policy = LatentPolicy(make_backbone())
    tokens.reference, _ = reference_logps(
        policy, tokens, np.ones(len(tokens), bool), batch_size=64, precision="float32"
    )
    if latent is not None:
        policy.latent = latents.build(latents.parse(latent), 32, 0)
    training = Training(
        **{"epochs": 3, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 1e-3, "precision": "float32"},
        **{"warmup_ratio": 0.1, "save_minutes": 60},
    )
    train(
        policy,
        tokens,
        objective=objectives.parse(DPO),
        training=training,
        seed=0,
        checkpoints=folder / "checkpoints",
        log_file=folder / "train.jsonl",
    )
    return policy.eval()


def test_groups_find_tastes_that_no_prompt_reveals(tmp_path):
    """Of 20 new people: DPO cannot know their taste; two labelled pairs of theirs tell it."""
    table, validation = world(20, 8, "test", 1), world(6, 8, "validation", 2)
    tokens = tokenize_pairs(table, make_tokenizer(), **TOKENS)
    base = LatentPolicy(make_backbone())
    everything = np.ones(len(tokens), bool)
    tokens.reference, _ = reference_logps(base, tokens, everything, batch_size=64, precision="float32")
    how = {"batch_size": 64, "precision": "float32"}
    objective = objectives.parse(DPO)

    plain = score_pairs(
        trained(tmp_path / "dpo", None), tokens, table["prompt_id"].to_pylist(), objective, batch_size=64,
        precision="float32",
    )  # fmt: skip
    assert 0.4 < accuracy(plain["chosen_reward"], plain["rejected_reward"]) < 0.6

    latent = {"kind": "exact", "codes": 4, "group_size": 8, "prior": "shared", "code_scale": 1.0, "learning_rate": 3e-2}
    policy = trained(tmp_path / "exact", latent)
    scores = score_codes(policy, tokens, objective, **how)
    found = by_codes(scores, table["group"].to_pylist(), table["pair_id"].to_pylist(), contexts=[0, 1, 2, 4], seed=0)
    assert 0.35 < found[0]["accuracy"] < 0.65
    assert found[2]["accuracy"] > 0.85 and found[2]["low"] > 0.6 and found[4]["accuracy"] > 0.9

    # The step from files gives the same.
    make_tokenizer().save_pretrained(tmp_path / "model")
    policy.save_pretrained(tmp_path / "model")
    record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
    write_json(tmp_path / "base.json", record)
    write_parquet(tmp_path / "pairs.parquet", pa.concat_tables([table, validation]))
    parts = []
    for pairs in (table, validation):
        scored = tokenize_pairs(pairs, make_tokenizer(), **TOKENS)
        logps, _ = reference_logps(base, scored, np.ones(len(scored), bool), batch_size=64, precision="float32")
        columns = {f"{side}_tokens": [len(ids) for ids in getattr(scored, side)] for side in ("chosen", "rejected")}
        columns |= {"chosen_logp": logps[:, 0], "rejected_logp": logps[:, 1]}
        parts.append(pa.table({"pair_id": pairs["pair_id"], **columns}))
    write_parquet(tmp_path / "reference.parquet", pa.concat_tables(parts))
    spec = {"tokens": TOKENS, "precision": "float32", "objective": DPO, "batch_size": 64, "contexts": [0, 1, 2, 4]}
    words = ["--model", "model", "--base", "base.json", "--pairs", "pairs.parquet", "--output", "person.json"]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    args = step.parser().parse_args([*words, "--reference", f"{tmp_path}/reference.parquet", "--spec", canonical(spec)])
    args.spec = specs.Personalise.parse(args.spec, args.execution)
    step.main(args)
    written = read_json(tmp_path / "person.json")
    assert written["n"] == 20 * 4 and written["groups"] == 20 and not math.isnan(written["contexts"]["0"]["low"])
    for size, value in written["contexts"].items():
        assert value == pytest.approx(found[int(size)] | {"nmi": None}), size
    assert (written["validation"]["n"], written["validation"]["groups"]) == (6 * 4, 6)
    assert written["validation"]["contexts"].keys() == written["contexts"].keys()
    assert written["validation"]["contexts"]["4"]["accuracy"] > 0.85 and "codes" not in written["validation"]
