"""Completions of a policy: with z from its prior, without its latent, and with single codes forced."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lpc.evaluation.diagnostics import distinct
from lpc.model.policy import LatentPolicy


def answer(policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase, prompt, **options) -> str:
    """Return the completion of one prompt (token ids), without special tokens, up to one of the policy's stop tokens.

    `options`: those of `LatentPolicy.generate`, such as `code`, `max_new_tokens` and `do_sample`.
    """
    ids = torch.tensor([list(map(int, prompt))], device=policy.device)
    output = policy.generate(ids, torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **options)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def choose_prompts(prompt_id: list[str], source: list[str], count: int, seed: int) -> list[int]:
    """Return positions of up to `count` pairs of different prompts: drawn by `seed`, from the sources in turn."""
    drawn: dict[str, list[int]] = {}
    for position in np.random.default_rng(seed).permutation(distinct(prompt_id)).tolist():
        drawn.setdefault(source[position], []).append(position)
    turns = sorted((turn, name, position) for name, own in drawn.items() for turn, position in enumerate(own))
    return [position for _, _, position in turns[:count]]


def strongest_codes(prior: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return up to `count` codes of the largest mean prior, and that mean. prior [N, K]: a row for each prompt."""
    mean = np.mean(prior, axis=0, dtype=np.float64)
    return [(int(code), float(mean[code])) for code in np.argsort(-mean, kind="stable")[:count]]


def forced_completions(
    policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase, prompt, codes: list[int], max_new_tokens: int
) -> list[dict]:
    """Return greedy completions of one prompt (token ids), each as {"z": "prior", "zero" or a code, "text"}."""
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    said = [("prior", answer(policy, tokenizer, prompt, **options))]
    said.append(("zero", answer(LatentPolicy(policy.backbone), tokenizer, prompt, **options)))
    said += [(code, answer(policy, tokenizer, prompt, code=code, **options)) for code in codes]
    return [{"z": z, "text": text} for z, text in said]
