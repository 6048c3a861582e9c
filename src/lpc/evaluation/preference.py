"""Log-probabilities, rewards and latents of preference pairs under a finished policy."""

from collections.abc import Sequence

import numpy as np
import torch

from lpc.data.tokens import PairTokens
from lpc.evaluation.intervals import outcomes
from lpc.latents.parts.mixture import marginal_loss, mixture_rewards
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.scoring import encoded_batches, prompt_states


def another_prompt(prompt_ids: list[str], seed: int) -> np.ndarray:
    """Return for each pair the position of a pair with a different prompt (itself, if there is only one prompt)."""
    first = {prompt: position for position, prompt in reversed(list(enumerate(prompt_ids)))}
    prompts = sorted(first)
    order = np.random.default_rng(seed).permutation(len(prompts))
    successor = {prompts[a]: first[prompts[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}
    return np.array([successor[prompt] for prompt in prompt_ids], dtype=np.int64)


def score_pairs(
    policy: LatentPolicy,
    tokens: PairTokens,
    prompt_ids: list[str] | None,
    objective: Objective,
    *,
    batch_size: int,
    precision: str,
    losses: bool = False,
) -> dict[str, np.ndarray]:
    """Return the rewards of every pair, float64 [n] each: `chosen_reward`, `rejected_reward`, from the prior by the
    latent's rule.

    `…_by_<rule>`: by each of the latent's rules of inference, its own among them. `…_log_ratio`: those of equation 4,
    where the objective itself needs no reference but `tokens` has one.

    Latent policies have diagnostics, too, which are never results: `…_zero` (z = 0) and `…_shuffled` (z, or the prior
    over codes, of another prompt). With a posterior there are `…_posterior` (z from the posterior, which sees who won)
    and `…_posterior_swapped` (z from the posterior of swapped completions).

    prompt_ids: which pairs have the same prompt; None: the policy's own rewards alone. losses: also `loss`, the
    objective's own without what `regularization` adds, from the prior by the same rule.
    """
    latent = policy.latent
    everything = prompt_ids is not None
    rules = latent.inference_rules() if latent is not None and everything else ()
    # By variant, how pairs are scored and what that takes of each pair; None: of the batch alone.
    scorings: dict[str, tuple[str, torch.Tensor | None]] = {"": ("z", None)}
    if latent is not None:
        with torch.no_grad():
            states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
            for rule in rules:
                by_rule = LatentPolicy(policy.backbone, latent.with_inference(inference=rule))
                scorings[f"_by_{rule}"] = _from_prior(by_rule, states, tokens.prompts)
            how, own = _from_prior(policy, states, tokens.prompts)
        scorings[""] = how, own
        if everything:
            scorings |= {"_zero": ("z", None), "_shuffled": (how, own[another_prompt(prompt_ids, seed=0)])}
        if everything and latent.has_posterior:
            scorings |= {"_posterior": ("posterior", None), "_posterior_swapped": ("swapped", None)}
    if everything and tokens.reference is not None and not objective.needs_reference:
        scorings["_log_ratio"] = scorings[""]
    rewards = {
        side + variant: np.empty(len(tokens)) for variant in scorings for side in ("chosen_reward", "rejected_reward")
    }
    if losses:
        rewards["loss"] = np.empty(len(tokens))
    under_codes = any(how in ("code", "mixture") for how, _ in scorings.values())
    for positions, batch, encoded in encoded_batches(policy, tokens, batch_size, precision, "rewards"):
        with torch.no_grad():
            code_logps = policy.code_pair_logps(encoded, latent.all_codes()) if under_codes else None
            for variant, (how, values) in scorings.items():
                value = None if values is None else values[positions]
                if how in ("posterior", "swapped"):
                    ends = [encoded.h_chosen, encoded.h_rejected]
                    with torch.autocast(policy.device.type, enabled=False):
                        value = latent.posterior_z(*(ends if how == "posterior" else ends[::-1]))
                logps = code_logps if how in ("code", "mixture") else policy.pair_logps(encoded, value)
                if variant == "_log_ratio":
                    sides = objective.log_ratios(*logps, batch)
                else:
                    loss, *sides = objective.evaluate(*logps, batch)
                if losses and variant == "":
                    if how == "mixture":
                        loss = marginal_loss(value, loss)
                    elif how == "code":
                        loss = loss.gather(1, value[:, None]).squeeze(1)
                    rewards["loss"][positions] = loss.double().cpu().numpy()
                if how == "mixture":
                    sides = mixture_rewards(value, *sides)
                elif how == "code":
                    sides = [side.gather(1, value[:, None]).squeeze(1) for side in sides]
                for side, reward in zip(("chosen_reward", "rejected_reward"), sides, strict=True):
                    rewards[side + variant][positions] = reward.double().cpu().numpy()
    return rewards


def _from_prior(policy: LatentPolicy, states: torch.Tensor, prompts: Sequence) -> tuple[str, torch.Tensor]:
    """How the rule of a policy's latent scores pairs, and what of each: "mixture" and log p [n, K], "code" and its
    number [n] where one code has all the weight, or "z" and z [n, d].

    The first two need the log-probabilities under each code alone, which one product with the LM head gives for all.
    """
    latent = policy.latent
    if latent.is_mixture:
        return "mixture", latent.prior_logits(states).log_softmax(-1)
    if latent.has_codes:
        largest, code = policy.prior_weights(states, prompts).max(-1)
        if bool((largest == 1).all()):
            return "code", code
    return "z", policy.prior_z(states, prompts)


def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Return the share of pairs with chosen above rejected; a tie counts one half."""
    return float(outcomes(chosen, rejected).mean())


@torch.no_grad()
def pair_latents(policy: LatentPolicy, tokens: PairTokens, *, batch_size: int, precision: str) -> dict[str, np.ndarray]:
    """Return float32 arrays of each pair: `h_x` [n, d], `z` [n, d], what the prior's z adds to it, and for latents with
    codes `prior` [n, K], and `posterior` [n, K] where it is a network."""
    states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
    latent = policy.latent
    z = latent.shift(policy.prior_z(states, tokens.prompts), states)
    result = {"h_x": states.cpu().numpy(), "z": z.float().cpu().numpy()}
    if latent.has_codes:
        result["prior"] = latent.prior_logits(states).softmax(-1).cpu().numpy()
    if latent.has_codes and latent.has_posterior:
        result["posterior"] = np.empty_like(result["prior"])
        for positions, _, encoded in encoded_batches(policy, tokens, batch_size, precision, "posterior"):
            with torch.autocast(policy.device.type, enabled=False):
                logits = latent.posterior_logits(encoded.h_chosen, encoded.h_rejected)
            result["posterior"][positions] = logits.softmax(-1).cpu().numpy()
    return result
