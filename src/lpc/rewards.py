"""From a recipe's `objective` settings to a function of log-probabilities."""

import math
from collections.abc import Callable

from torch import Tensor

from lpc import objectives


def pair_objective(objective: dict) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The recipe's objective as one function of (chosen_logps, rejected_logps, batch): sums of log-probabilities [B]
    in, `(losses, chosen_rewards, rejected_rewards)` [B] out. The batch gives the reference and the completion
    lengths."""
    settings = dict(objective)
    name = settings.pop("name")
    reduction = settings.pop("reduction", "mean" if name == "simpo" else "sum")
    function = getattr(objectives, name)

    def evaluate(chosen: Tensor, rejected: Tensor, batch: dict[str, Tensor]):
        logps = [chosen, rejected]
        if needs_reference(objective):
            logps += [batch["reference_chosen_logps"], batch["reference_rejected_logps"]]
        if reduction == "mean":
            lengths = [batch["chosen_tokens"], batch["rejected_tokens"]] * 2
            logps = [value / length for value, length in zip(logps, lengths[: len(logps)], strict=True)]
        return function(*logps, **settings)

    return evaluate


def needs_reference(objective: dict) -> bool:
    return objective["name"] != "simpo"


def first_loss(objective: dict) -> float | None:
    """The loss where the policy still equals the reference: ln 2 for DPO (any label smoothing), (1/2τ)² for IPO."""
    if objective["name"] == "dpo":
        return math.log(2)
    if objective["name"] == "ipo":
        return (1 / (2 * objective["tau"])) ** 2
    return None
