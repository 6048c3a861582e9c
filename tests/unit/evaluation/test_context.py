"""Texts for a person of whom labelled pairs are known: the code that is inferred, and the command line."""

import copy
import json

import numpy as np
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import cli, latents, objectives
from lpc.cli import UserError
from lpc.data.tokens import encode_prompts, tokenize_pairs
from lpc.evaluation.person import score_codes
from lpc.files import write_json
from lpc.latents.parts.mixture import infer_code
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.steps import generate

TOKENS = {"max_length": 64, "max_prompt_length": 32}
DPO = {"name": "dpo", "beta": 0.5}
SIMPO = {"name": "simpo", "beta": 2.0, "margin": 0.5}
LATENTS = {
    "lpc": {"kind": "lpc", "codes": 5, "logit_scale": 10.0},
    "exact": {"kind": "exact", "codes": 5, "logit_scale": 10.0},
    "shared": {"kind": "exact", "codes": 5, "prior": "shared"},
}
COUNT = 5  # the last pair is the new one


def policy_of(latent: str) -> LatentPolicy:
    """A policy whose backbone has left the base, with codes that matter."""
    policy = LatentPolicy(make_backbone(), latents.build(latents.parse(LATENTS[latent]), 32, seed=1)).eval()
    torch.nn.init.normal_(policy.latent.codebook, std=1.0, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        policy.head.weight.add_(torch.randn(policy.head.weight.shape, generator=torch.Generator().manual_seed(3)) / 20)
    return policy


def records(count: int = COUNT) -> list[dict]:
    rows = make_pairs(count).to_pylist()
    return [{"prompt": row["messages"][0]["content"]} | {k: row[k] for k in ("chosen", "rejected")} for row in rows]


@pytest.mark.parametrize("objective", [DPO, SIMPO], ids=["dpo", "simpo"])
@pytest.mark.parametrize("latent", LATENTS)
def test_a_persons_code_is_what_scoring_of_his_pairs_gives(latent, objective):
    """As step `personalise` weighs the codes of the last pair, given the others, from the table of pairs."""
    policy, base, objective = policy_of(latent), LatentPolicy(make_backbone()).eval(), objectives.parse(objective)
    tokens = tokenize_pairs(make_pairs(COUNT), make_tokenizer(), **TOKENS)
    how = {"batch_size": 3, "precision": "float32"}
    tokens.reference, _ = reference_logps(base, tokens, np.ones(COUNT, bool), **how)
    scores = score_codes(policy, tokens, objective, **how)
    log_prior, losses = scores["log_prior"], scores["losses"]
    expected = infer_code(log_prior[-1:], log_prior[:-1], losses[:-1]).exp()

    reference = base if objective.needs_reference else None
    found = policy.infer_code(
        records()[:-1], make_tokenizer(), objective, [tokens.prompts[-1]], reference=reference, **TOKENS
    )
    assert found.shape == (1, 5) and found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - log_prior[-1:].exp()).abs().max() > 0.05, (
        "pairs that tell nothing would hide what is done with them"
    )
    if objective.needs_reference:
        without = copy.copy(tokens)
        without.reference = tokens.reference * 0
        other = score_codes(policy, without, objective, **how)["losses"][:-1]
        assert (infer_code(log_prior[-1:], log_prior[:-1], other).exp() - expected).abs().max() > 0.02
    prior = policy.infer_code([], make_tokenizer(), objective, tokens.prompts, reference=reference, **TOKENS)
    torch.testing.assert_close(prior, log_prior.exp(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_inferred_is_refused():
    policy, tokenizer, dpo, simpo = policy_of("exact"), make_tokenizer(), *map(objectives.parse, (DPO, SIMPO))
    with pytest.raises(UserError, match="reference: objective dpo compares with the base model"):
        policy.infer_code(records(), tokenizer, dpo, [[1]], **TOKENS)
    for other in (
        LatentPolicy(make_backbone()),
        LatentPolicy(make_backbone(), latents.build(latents.parse({"kind": "vector"}), 32, 0)),
    ):
        with pytest.raises(UserError, match="no codes, so a person has none"):
            other.infer_code(records(), tokenizer, simpo, [[1]], **TOKENS)
    with pytest.raises(UserError, match=r"pair 2: rejected is None; it must be text"):
        policy.infer_code([*records(1), {"prompt": "a", "chosen": "b"}], tokenizer, simpo, [[1]], **TOKENS)
    with pytest.raises(UserError, match="all 1 pairs have equal completions"):
        policy.infer_code([{"prompt": "a", "chosen": "b", "rejected": "b"}], tokenizer, simpo, [[1]], **TOKENS)


@pytest.fixture
def run(tmp_path):
    """A run's folder with its model, the record of its training and its base; and a file of pairs."""
    tokenizer, base = make_tokenizer(), tmp_path / "base"
    policy_of("shared").save_pretrained(tmp_path / "run/model")
    tokenizer.save_pretrained(tmp_path / "run/model")
    make_backbone().save_pretrained(base)
    tokenizer.save_pretrained(base)
    spec = {"objective": DPO, "latent": LATENTS["shared"], "tokens": TOKENS}
    write_json(tmp_path / "run/train.json", {"identity": {"spec": spec, "base": "ab"}})
    record = {"path": str(base), "sha256": "ab", "chat_template": None, "chat_template_kwargs": {}}
    write_json(tmp_path / "base.json", record | {"trust_remote_code": False})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    return tmp_path


def said(capsys, *words) -> str:
    generate.main(cli.parse(generate.parser(), ["a prompt", "quick fox", "--max-new-tokens", "6", *map(str, words)]))
    return capsys.readouterr().out


def test_context_on_the_command_line_forces_the_most_probable_code(run, capsys):
    where = ["--model", run / "run/model"]
    found = said(capsys, *where, "--context", run / "pairs.jsonl", "--base", run / "base.json")
    policy, tokenizer = LatentPolicy.from_pretrained(run / "run/model").eval(), make_tokenizer()
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": text}] for text in ("a prompt", "quick fox")])
    base = LatentPolicy.from_pretrained(run / "base").eval()
    weights = policy.infer_code(records(), tokenizer, objectives.parse(DPO), prompts, reference=base, **TOKENS)
    codes = weights.argmax(-1).tolist()
    texts = [said(capsys, *where, "--code", code) for code in range(5)]
    assert len({text.splitlines()[0] for text in texts}) > 1, (
        "codes that all say the same would hide which one is forced"
    )
    assert found.splitlines() == [texts[code].splitlines()[i] for i, code in enumerate(codes)]
    reversed_pairs = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in records()]
    (run / "reversed.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in reversed_pairs))
    assert said(capsys, *where, "--context", run / "reversed.jsonl", "--base", run / "base.json") != found


def test_context_on_the_command_line_refuses(run, capsys):
    where = ["--model", run / "run/model", "--context", run / "pairs.jsonl"]
    with pytest.raises(UserError, match="objective dpo compares with the base model; give the path"):
        said(capsys, *where)
    with pytest.raises(UserError, match="both choose the code"):
        said(capsys, *where, "--code", 1)
    record = json.loads((run / "base.json").read_text())
    write_json(run / "other.json", record | {"sha256": "cd"})
    with pytest.raises(UserError, match=r"other\.json is of another model than the run's base"):
        said(capsys, *where, "--base", run / "other.json")
    (run / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl: row 1: missing field rejected"):
        said(capsys, *where, "--base", run / "base.json")
    (run / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=r"no such file; use a \.jsonl file"):
        said(capsys, *where, "--base", run / "base.json")
    (run / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (run / "run/train.json").unlink()
    with pytest.raises(UserError, match=r"train\.json is missing, which names the objective"):
        said(capsys, *where, "--base", run / "base.json")
