"""Completions with codes forced: which prompts, which codes, and what each z says."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import cli, latents
from lpc.cli import UserError
from lpc.data.tokens import tokenize_pairs
from lpc.evaluation.completions import answer, choose_prompts, forced_completions, strongest_codes
from lpc.files import canonical, write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.steps import completions as step

TOKENS = {"max_length": 64, "max_prompt_length": 32}
SHARP = {"codes": 4, "logit_scale": 20.0}
SPEC = {"tokens": TOKENS, "precision": "float32", "prompts": 3, "codes": 2, "max_new_tokens": 6, "seed": 0}


def policy_of(codebook_std: float = 3.0, kind: str = "lpc") -> LatentPolicy:
    """Codes so large that each says something else, and a prior that is sure."""
    latent = latents.build(latents.parse({"kind": kind, **(SHARP if kind == "lpc" else {})}), 32, seed=1)
    if latent.has_codes:
        torch.nn.init.normal_(latent.codebook, std=codebook_std, generator=torch.Generator().manual_seed(2))
    return LatentPolicy(make_backbone(), latent).eval()


def prompts():
    return tokenize_pairs(make_pairs(4), make_tokenizer(), **TOKENS).prompts


def naive(policy, prompt, z, count):
    """Greedy tokens one by one, each from the whole sequence, with z added to the last hidden state."""
    ids = [int(i) for i in prompt]
    for _ in range(count):
        with torch.no_grad():
            hidden = policy.hidden(torch.tensor([ids]))[0]
            added = 0 if z is None else z(hidden[len(prompt) - 1])
            ids.append(int(policy.head(hidden[-1] + added).argmax()))
        if ids[-1] == 2:
            break
    return make_tokenizer().decode(ids[len(prompt) :], skip_special_tokens=True)


def test_each_z_says_what_a_naive_decoder_says():
    policy, tokenizer = policy_of(), make_tokenizer()
    for prompt in prompts():
        found = {entry["z"]: entry["text"] for entry in forced_completions(policy, tokenizer, prompt, [2, 0], 6)}
        expected = {
            "prior": naive(policy, prompt, lambda h, prompt=prompt: policy.prior_z(h[None], [prompt])[0], 6),
            "zero": naive(policy, prompt, None, 6),
            2: naive(policy, prompt, lambda h: policy.latent.codebook[2], 6),
            0: naive(policy, prompt, lambda h: policy.latent.codebook[0], 6),
        }
        assert list(found) == ["prior", "zero", 2, 0]
        assert found == expected
        assert len(set(found.values())) > 2, "codes of this size say something else each"


def test_a_latent_of_nothing_says_what_the_backbone_says():
    policy, tokenizer = policy_of(codebook_std=0.0), make_tokenizer()
    for prompt in prompts():
        assert len({entry["text"] for entry in forced_completions(policy, tokenizer, prompt, [0, 1, 2, 3], 6)}) == 1
        assert answer(policy, tokenizer, prompt, max_new_tokens=6, do_sample=False) == naive(policy, prompt, None, 6)


def test_prompts_are_distinct_and_of_the_sources_in_turn():
    prompt_id = [f"p{i // 2}" for i in range(24)]
    source = ["a" if i < 16 else "b" if i < 20 else "c" for i in range(24)]
    chosen = choose_prompts(prompt_id, source, 5, seed=0)
    assert len({prompt_id[i] for i in chosen}) == 5
    assert [source[i] for i in chosen] == ["a", "b", "c", "a", "b"]
    assert chosen == choose_prompts(prompt_id, source, 5, seed=0)
    assert chosen[:3] == choose_prompts(prompt_id, source, 3, seed=0), "more prompts leave the first ones"
    assert any(chosen != choose_prompts(prompt_id, source, 5, seed=seed) for seed in range(1, 5))
    assert len(choose_prompts(prompt_id, source, 100, seed=0)) == 12


def test_strongest_codes_by_mean_prior():
    prior = np.array([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7], [0.0, 0.3, 0.7]])
    assert [code for code, _ in strongest_codes(prior, 2)] == [2, 0]
    assert [mean for _, mean in strongest_codes(prior, 9)] == pytest.approx([1.4 / 3, 0.9 / 3, 0.7 / 3])
    assert [code for code, _ in strongest_codes(np.full((2, 4), 0.25), 2)] == [0, 1]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A function from settings of a latent to the step's arguments: a run, its base and its latents on disk."""

    def make(**settings):
        folder = tmp_path_factory.mktemp("run")
        policy_of(**settings).save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
        write_json(folder / "base.json", record)
        pairs = make_pairs(12, splits=("train", "test"))
        write_parquet(folder / "pairs.parquet", pairs)
        test = pairs.filter(pa.compute.equal(pairs["split"], "test"))
        prior = [[0.125, 0.125, 0.25, 0.5]] * len(test)
        columns = {name: test[name] for name in ("pair_id", "prompt_id", "source")}
        write_parquet(folder / "latents.parquet", pa.table({**columns, "prior": prior}))
        arguments = ["--spec", canonical(SPEC), "--model", folder / "model", "--base", folder / "base.json"]
        arguments += ["--pairs", folder / "pairs.parquet", "--latents", folder / "latents.parquet"]
        return cli.parse(step.parser(), [*map(str, arguments), "--output", str(folder / "completions.json")])

    return make


def test_the_step_writes_codes_prompts_and_completions(run_of):
    args = run_of()
    step.main(args)
    first = Path(args.output).read_bytes()
    found = json.loads(first)
    assert found["codes"] == [{"code": 3, "mean_prior": 0.5}, {"code": 2, "mean_prior": 0.25}]
    assert len({prompt["prompt_id"] for prompt in found["prompts"]}) == 3
    assert {prompt["source"] for prompt in found["prompts"]} == {"source-0", "source-1", "source-2"}
    of_test = {row["prompt_id"]: row["messages"] for row in make_pairs(12, splits=("train", "test")).to_pylist()[1::2]}
    for prompt in found["prompts"]:
        assert [entry["z"] for entry in prompt["completions"]] == ["prior", "zero", 3, 2]
        assert prompt["messages"] == of_test[prompt["prompt_id"]]
    step.main(args)
    assert Path(args.output).read_bytes() == first


def test_a_latent_without_codes_is_refused(run_of):
    with pytest.raises(UserError, match="no latent with codes; nothing to force"):
        step.main(run_of(kind="mlp"))
