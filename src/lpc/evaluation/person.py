"""The latent of a person from labelled pairs of the same person, and accuracy on the person's other pairs with it."""

from collections import defaultdict
from hashlib import sha256
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from lpc.cli import UserError
from lpc.data.tokens import PairTokens
from lpc.evaluation.diagnostics import nmi
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.latents.parts.mixture import infer_code, mixture_rewards
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.scoring import encoded_batches, prompt_states


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


@torch.no_grad()
def score_posteriors(
    policy: LatentPolicy,
    tokens: PairTokens,
    objective: Objective,
    people: list[list[int]],
    contexts: list[int],
    *,
    batch_size: int,
    precision: str,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the rewards of chosen and rejected of every pair, float64 [n] each, by the number of known pairs.

    For latents with a posterior and without codes. people: positions of each person's pairs, the context first. z is
    the mean of the product of the posteriors of a person's first pairs; with none known, it is from the prior.
    """
    latent, outputs = policy.latent, {}
    for positions, _, encoded in encoded_batches(policy, tokens, batch_size, precision, "posterior"):
        with torch.autocast(policy.device.type, enabled=False):
            rows = latent.posterior_outputs(encoded.h_chosen, encoded.h_rejected)
        outputs |= zip(positions.tolist(), rows, strict=True)
    states = prompt_states(policy, tokens, batch_size=batch_size, precision=precision)
    z = {size: policy.prior_z(states, tokens.prompts).clone() for size in contexts}
    for positions in people:
        for size in filter(None, contexts):
            z[size][positions] = latent.mean_z(latent.combine(torch.stack([outputs[i] for i in positions[:size]])))
    found = {size: torch.empty(2, len(tokens), dtype=torch.float64) for size in contexts}
    for positions, batch, encoded in encoded_batches(policy, tokens, batch_size, precision, "rewards"):
        for size in contexts:
            _, *rewards = objective.evaluate(*policy.pair_logps(encoded, z[size][positions]), batch)
            found[size][:, positions] = torch.stack(rewards).double().cpu()
    return {size: (chosen, rejected) for size, (chosen, rejected) in found.items()}


def code_rewards(
    scores: dict[str, Tensor], people: list[list[int]], contexts: list[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the rewards of chosen and rejected of every pair, float64 [n] each, by the number of known pairs.

    scores: as `score_codes` returns them. people: positions of each person's pairs, the context first. A pair after the
    longest context is right where Σ_k p(k | x, context) σ(Δ_k) > ½ (`infer_code`); the others have the prior alone.
    """
    log_prior, losses, most = scores["log_prior"], scores["losses"], max(contexts)
    found = {}
    for size in contexts:
        posterior = log_prior.clone()
        for positions in people:
            context, scored = positions[:size], positions[most:]
            posterior[scored] = infer_code(log_prior[scored], log_prior[context], losses[context])
        found[size] = mixture_rewards(posterior, scores["chosen_rewards"], scores["rejected_rewards"])
    return found


def code_accuracy(scores: dict[str, Tensor], sources: list[str]) -> list[dict]:
    """Return the accuracy of each code alone on the pairs of each source, {code, source, pairs, accuracy} each."""
    margins, names, found = scores["chosen_rewards"] - scores["rejected_rewards"], np.array(sources), []
    for code in range(margins.shape[1]):
        for source in sorted(set(sources)):
            own = margins[names == source, code]
            accuracy = ((own > 0) + 0.5 * (own == 0)).mean().item()
            found.append({"code": code, "source": source, "pairs": len(own), "accuracy": accuracy})
    return found


def person_codes(scores: dict[str, Tensor], people: list[list[int]], size: int) -> Tensor:
    """Return p(k | context) [people, K] of each person, from its first `size` pairs, at least one.

    scores: as `score_codes` returns them. people: positions of each person's pairs, the context first.
    """
    log_prior, losses = scores["log_prior"], scores["losses"]
    known = [positions[:size] for positions in people]
    return torch.stack([(log_prior[own].mean(0) - losses[own].sum(0)).softmax(-1) for own in known])


def person_sources(people: list[list[int]], sources: list[str]) -> list[str] | None:
    """Return the source of each person's pairs; None where someone's pairs are of several sources."""
    of_people = [{sources[i] for i in positions} for positions in people]
    return [*map(min, of_people)] if max(map(len, of_people)) == 1 else None


def code_agreement(
    scores: dict[str, Tensor], people: list[list[int]], sources: list[str], contexts: list[int]
) -> dict[int, float | None]:
    """Return by number of known pairs the NMI between a person's most probable code and the source of its pairs.

    people: positions of each person's pairs, the context first. None with no pair known, where someone's pairs are of
    several sources, or where all are of one.
    """
    of_people = person_sources(people, sources)
    if of_people is None or len(set(of_people)) == 1:
        return dict.fromkeys(contexts)
    return {
        size: nmi(of_people, person_codes(scores, people, size).argmax(-1).tolist()) if size else None
        for size in contexts
    }


def code_shares(
    scores: dict[str, Tensor], people: list[list[int]], sources: list[str], size: int
) -> dict[str, list[float]]:
    """Return P(code | source) [K] by source: the mean of `person_codes` over the people whose pairs are of this source.

    Empty with no pair known, or where someone's pairs are of several sources.
    """
    of_people = person_sources(people, sources)
    if of_people is None or size == 0:
        return {}
    codes, names = person_codes(scores, people, size), np.array(of_people)
    return {source: codes[names == source].mean(0).tolist() for source in sorted(set(of_people))}


def context_first(
    groups: list[str | None], pair_ids: list[str], *, contexts: list[int], seed: int, split: str = "test"
) -> dict[str, list[int]]:
    """Return the positions of each group's pairs, in the order of a hash of seed and pair_id; groups sorted by name.

    The first max(contexts) of a group are context, and the others are scored. Groups without others are left out, and
    pairs of group None. Raises UserError, which names the split, where no group is left.
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
            f"evaluation.personalise.contexts: no group has more than {most} {split} pairs, the largest has {largest}; "
            f"lower the largest context, or make `split.{split}` of this dataset larger"
        )
    return large


def personal_accuracy(rewards: dict[int, tuple[Tensor, Tensor]], people: list[list[int]]) -> dict[int, dict]:
    """Return the accuracy on a person's pairs with its 95 % interval, clustered by person, by number of known pairs.

    rewards: of chosen and rejected, [n] each, by number of known pairs (`code_rewards`, `score_posteriors`). people:
    positions of each person's pairs, the context first. Only pairs after the longest context are scored, so every
    size is measured on the same pairs.
    """
    scored = [positions[max(rewards) :] for positions in people]
    who, positions = np.repeat(np.arange(len(people)), [*map(len, scored)]), [*chain(*scored)]
    found = {}
    for size, sides in rewards.items():
        estimate, low, high = accuracy_interval(outcomes(*(side[positions] for side in sides)), who)
        found[size] = {"accuracy": estimate, "low": low, "high": high}
    return found
