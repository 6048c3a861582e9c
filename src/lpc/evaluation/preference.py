"""Log-probabilities, rewards and latents of preference pairs under a finished policy."""

import numpy as np
import torch

from lpc.data.tokens import PairTokens
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.scoring import encoded_batches, prompt_states


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
