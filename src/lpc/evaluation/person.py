"""The code of a person from labelled pairs of the same person, and accuracy on the person's other pairs with it."""

from collections import defaultdict
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from lpc.cli import UserError
from lpc.data.tokens import PairTokens
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.latents.parts.mixture import infer_code, mixture_rewards
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.scoring import encoded_batches


@torch.no_grad()
def score_codes(
    policy: LatentPolicy, tokens: PairTokens, objective: Objective, *, batch_size: int, precision: str
) -> dict[str, Tensor]:
    """Return what `LatentPolicy.score_codes` does, of every pair: float64 [n, K] each, on the CPU."""
    found = {}
    for positions, batch, encoded in encoded_batches(policy, tokens, batch_size, precision, "codes"):
        for name, value in policy.score_codes(encoded, batch, objective).items():
            column = found.setdefault(name, torch.empty(len(tokens), value.shape[1], dtype=torch.float64))
            column[positions] = value.cpu()
    return found


def personal_accuracy(
    scores: dict[str, Tensor], groups: list[str | None], pair_ids: list[str], *, contexts: list[int], seed: int
) -> dict:
    """Return the accuracy on a person's pairs, by the number of other pairs of the person that are known.

    scores: as `score_codes` returns them. A hash of seed and pair_id orders the pairs of each group. The first
    max(contexts) are context, and only the others are scored, so every size is measured on the same pairs. A pair is
    right where Σ_k p(k | x, context) σ(Δ_k) > ½ (`infer_code`). Intervals are of 95 %, clustered by group.

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
            log_prior, losses = scores["log_prior"], scores["losses"]
            posterior = infer_code(log_prior[scored], log_prior[context], losses[context])
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
