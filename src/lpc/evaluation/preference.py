"""Log-probabilities, rewards and latents of preference pairs under a finished policy."""

import contextlib
import logging
import sys
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from lpc.data.tokens import MODEL_INPUTS, PairTokens, collate
from lpc.model.policy import Encoded, LatentPolicy
from lpc.objectives.base import Objective

log = logging.getLogger("lpc")

SAMPLE = 4096
"""Training pairs, at most, whose h_x is kept for a codebook that starts from clusters."""


def to_device(policy: LatentPolicy) -> LatentPolicy:
    """On the GPU if there is one; in evaluation mode."""
    return policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def autocast(policy: LatentPolicy, precision: str) -> contextlib.AbstractContextManager:
    """The same arithmetic as in training: `precision` is float32 or bfloat16 (autocast over float32 weights)."""
    return torch.autocast(policy.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def encoded_batches(
    policy: LatentPolicy, tokens: PairTokens, batch_size: int, precision: str, title: str
) -> Iterator[tuple[np.ndarray, dict, Encoded]]:
    """Yield (positions in `tokens`, batch, hidden states) over all pairs, batched by length, with progress shown."""
    batches = tokens.sorted_batches(batch_size)
    for number, positions in enumerate(tqdm(batches, desc=title, disable=not sys.stderr.isatty())):
        batch = collate([tokens[i] for i in positions])
        batch = {k: v.to(policy.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with torch.no_grad(), autocast(policy, precision):
            yield np.array(positions), batch, policy.encode(**{name: batch[name] for name in MODEL_INPUTS})
        if not sys.stderr.isatty() and (number + 1) % max(1, len(batches) // 4) == 0:
            log.info("%s: %d of %d batches", title, number + 1, len(batches))


class Moments:
    """Mean and standard deviation of feature vectors that arrive in batches, in float64."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, h: torch.Tensor) -> None:
        h = h.double().cpu()
        self.count += len(h)
        self.total = self.total + h.sum(0)
        self.squares = self.squares + (h * h).sum(0)

    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [d] each. A feature that never varies gets a standard deviation of 1: it stays at 0 when
        standardised."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp_min(0)
        std = variance.sqrt()
        return mean.float(), torch.where(std > 1e-6 * mean.abs().clamp_min(1), std, 1.0).float()


def reference_logps(
    policy: LatentPolicy, tokens: PairTokens, train: np.ndarray, *, batch_size: int, precision: str
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Sums of log-probabilities of the base model, float64 [n, 2] (chosen, rejected), and feature statistics.

    The statistics are over the pairs where `train` [n] is true: mean and std [d] of h_x ("prompt.mean", "prompt.std")
    and of both h_{x,y} ("completion.…"), for latents that standardise their inputs; and h_x itself of up to `SAMPLE`
    evenly spaced ones ("prompt.sample" [≤ SAMPLE, d]), for codes that start from clusters. All come from the same
    backbone pass.
    """
    logps = np.empty((len(tokens), 2))
    rows = np.flatnonzero(train)
    count = min(SAMPLE, len(rows))
    sample, row_in_sample = torch.empty(count, policy.head.weight.shape[1]), np.full(len(tokens), -1)
    row_in_sample[rows[np.arange(count) * len(rows) // max(1, count)]] = np.arange(count)
    prompt, completion = Moments(), Moments()
    for positions, _, encoded in encoded_batches(policy, tokens, batch_size, precision, "reference"):
        chosen, rejected = policy.pair_logps(encoded, None)
        logps[positions] = torch.stack([chosen, rejected], -1).double().cpu().numpy()
        inside = torch.from_numpy(train[positions]).to(encoded.h_x.device)
        prompt.add(encoded.h_x[inside])
        kept = row_in_sample[positions] >= 0
        sample[row_in_sample[positions[kept]]] = encoded.h_x.float().cpu()[kept]
        completion.add(encoded.h_chosen[inside])
        completion.add(encoded.h_rejected[inside])
    statistics = {}
    if train.any():
        for name, moments in (("prompt", prompt), ("completion", completion)):
            statistics[f"{name}.mean"], statistics[f"{name}.std"] = moments.mean_std()
        statistics["prompt.sample"] = sample
    return logps, statistics


def prompt_states(policy: LatentPolicy, tokens: PairTokens, *, batch_size: int, precision: str) -> torch.Tensor:
    """h_x of every pair, float32 [n, d], from the prompts alone."""
    states = torch.empty(len(tokens), policy.head.weight.shape[1], device=policy.device)
    order = np.argsort([-len(p) for p in tokens.prompts], kind="stable")
    for start in range(0, len(order), 2 * batch_size):
        part = order[start : start + 2 * batch_size]
        lengths = torch.tensor([len(tokens.prompts[i]) for i in part], device=policy.device)
        ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
        for row, i in enumerate(part):
            ids[row, : len(tokens.prompts[i])] = torch.from_numpy(tokens.prompts[i])
        with torch.no_grad(), autocast(policy, precision):
            hidden = policy.hidden(ids.to(policy.device))
        states[part] = hidden[torch.arange(len(part), device=policy.device), lengths - 1].float()
    return states


def another_prompt(prompt_ids: list[str], seed: int) -> np.ndarray:
    """For each pair the position of a pair with a different prompt (itself, if there is only one prompt)."""
    first = {prompt: position for position, prompt in reversed(list(enumerate(prompt_ids)))}
    prompts = sorted(first)
    order = np.random.default_rng(seed).permutation(len(prompts))
    successor = {prompts[a]: first[prompts[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}
    return np.array([successor[prompt] for prompt in prompt_ids], dtype=np.int64)


def score_pairs(
    policy: LatentPolicy,
    tokens: PairTokens,
    prompt_ids: list[str],
    objective: Objective,
    *,
    batch_size: int,
    precision: str,
) -> dict[str, np.ndarray]:
    """Rewards of every pair, float64 [n] each: `chosen_reward`, `rejected_reward`, with z from the prior.

    For latent policies also diagnostics that are never results: `…_zero` (z = 0), `…_shuffled` (z of another prompt),
    and, where there is a posterior, `…_posterior` (z from the posterior, which sees who won) and `…_posterior_swapped`
    (from the posterior shown the completions the wrong way round).
    """
    latent = policy.latent
    variants = [""] if latent is None else ["", "_zero", "_shuffled"]
    if latent is not None and latent.has_posterior:
        variants += ["_posterior", "_posterior_swapped"]
    rewards = {
        side + variant: np.empty(len(tokens)) for variant in variants for side in ("chosen_reward", "rejected_reward")
    }
    if latent is not None:
        with torch.no_grad():
            states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
            z_prior = policy.prior_z(states, tokens.prompts)
        z_other = z_prior[another_prompt(prompt_ids, seed=0)]
    for positions, batch, encoded in encoded_batches(policy, tokens, batch_size, precision, "rewards"):
        for variant in variants:
            if variant == "_zero" or latent is None:
                z = None
            elif variant in ("", "_shuffled"):
                z = (z_prior if variant == "" else z_other)[positions]
            else:
                ends = [encoded.h_chosen, encoded.h_rejected]
                with torch.no_grad(), torch.autocast(policy.device.type, enabled=False):
                    z = latent.posterior_z(*(ends if variant == "_posterior" else ends[::-1]))
            _, chosen, rejected = objective.evaluate(*policy.pair_logps(encoded, z), batch)
            rewards["chosen_reward" + variant][positions] = chosen.double().cpu().numpy()
            rewards["rejected_reward" + variant][positions] = rejected.double().cpu().numpy()
    return rewards


def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Share of pairs with chosen above rejected; a tie counts one half."""
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))


@torch.no_grad()
def pair_latents(policy: LatentPolicy, tokens: PairTokens, *, batch_size: int, precision: str) -> dict[str, np.ndarray]:
    """Per pair, float32: `z` [n, d] from the prior, `h_x` [n, d], and for latents with codes `prior`, `posterior` [n,
    K]."""
    states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
    result = {"h_x": states.cpu().numpy(), "z": policy.prior_z(states, tokens.prompts).float().cpu().numpy()}
    latent = policy.latent
    if latent.has_codes:
        result["prior"] = latent.prior_logits(states).softmax(-1).cpu().numpy()
        result["posterior"] = np.empty_like(result["prior"])
        for positions, _, encoded in encoded_batches(policy, tokens, batch_size, precision, "posterior"):
            with torch.autocast(policy.device.type, enabled=False):
                logits = latent.posterior_logits(encoded.h_chosen, encoded.h_rejected)
            result["posterior"][positions] = logits.softmax(-1).cpu().numpy()
    return result
