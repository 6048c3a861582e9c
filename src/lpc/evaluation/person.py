"""The code of a person from labelled pairs of the same person, and accuracy on the person's other pairs with it."""

from collections import defaultdict
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from lpc.cli import UserError
from lpc.data.tokens import PairTokens
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.latents.parts.mixture import mixture_rewards
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.scoring import encoded_batches, prompt_states


def infer_code(log_prior: Tensor, losses: Tensor) -> Tensor:
    """Return log p(k | context) [..., K] ∝ π_k Π_i exp(−ℓ_ik), by Bayes' rule.

    log_prior [..., K]: log π; losses [..., C, K]: of C pairs of one person under each code, such as −log σ(Δ_ik). With
    no pair (C = 0) it is the prior.
    """
    return (log_prior - losses.sum(-2)).log_softmax(-1)


@torch.no_grad()
def score_codes(
    policy: LatentPolicy, tokens: PairTokens, objective: Objective, *, batch_size: int, precision: str
) -> dict[str, Tensor]:
    """Return `log_prior`, `losses`, `chosen_rewards` and `rejected_rewards` of every pair under each code.

    All float64 [n, K] on the CPU. The latent of `policy` must have codes.
    """
    latent = policy.latent
    states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
    found = {"log_prior": latent.prior_logits(states).double().log_softmax(-1).cpu()}
    names = ("losses", "chosen_rewards", "rejected_rewards")
    found |= {name: torch.empty_like(found["log_prior"]) for name in names}
    for positions, batch, encoded in encoded_batches(policy, tokens, batch_size, precision, "codes"):
        values = objective.evaluate(*policy.code_pair_logps(encoded, latent.codebook), batch)
        for name, value in zip(names, values, strict=True):
            found[name][positions] = value.double().cpu()
    return found


def personal_accuracy(
    scores: dict[str, Tensor], groups: list[str | None], pair_ids: list[str], *, contexts: list[int], seed: int
) -> dict:
    """Return the accuracy on a person's pairs, by the number of other pairs of the person that are known.

    scores: as `score_codes` returns them. A hash of seed and pair_id orders the pairs of each group. The first
    max(contexts) are context, and only the others are scored, so every size is measured on the same pairs. A pair is
    right where Σ_k p(k | context) σ(Δ_k) > ½. The prior of a pair with its context is that of training: the mean over
    these pairs of log p(·|x), normalised. Intervals are of 95 %, clustered by group.

    Raises UserError where no group has a pair that is scored.
    """
    members, most = defaultdict(list), max(contexts)
    for position, group in enumerate(groups):
        if group is not None:
            members[group].append(position)
    for positions in members.values():
        positions.sort(key=lambda i: sha256(f"lpc person {seed} {pair_ids[i]}".encode()).digest())
    large = {group: positions for group, positions in sorted(members.items()) if len(positions) > most}
    if not large:
        largest = max(map(len, members.values()), default=0)
        raise UserError(
            f"evaluation.personalise.contexts: no group has more than {most} test pairs, the largest has {largest}; "
            "lower the largest context, or make `split.test` of this dataset larger"
        )
    people = np.repeat(list(large), [len(positions) - most for positions in large.values()])
    accuracy = {}
    for size in contexts:
        outcome = []
        for positions in large.values():
            context, scored = positions[:size], positions[most:]
            log_prior = (scores["log_prior"][context].sum(0) + scores["log_prior"][scored]) / (size + 1)
            posterior = infer_code(log_prior, scores["losses"][context])
            rewards = mixture_rewards(posterior, scores["chosen_rewards"][scored], scores["rejected_rewards"][scored])
            outcome.append(outcomes(*rewards))
        estimate, low, high = accuracy_interval(np.concatenate(outcome), people)
        accuracy[str(size)] = {"accuracy": estimate, "low": low, "high": high}
    return {
        "n": len(people),
        "groups": len(large),
        "groups_left_out": len(members) - len(large),
        "pairs_without_group": groups.count(None),
        "contexts": accuracy,
    }
