"""Direct Preference Optimization."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class DPO(Objective):
    title: ClassVar[str] = "DPO"

    name: Literal["dpo"]
    beta: float = key(0.1, "scale of the reward", gt=0)
    label_smoothing: float = key(0.0, "assumed share of wrong labels", ge=0, lt=0.5)
    reduction: Reduction = key("sum", "log-ratios over tokens: `sum`, or `mean`, which needs a larger `beta`")

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return dpo(*logps, beta=self.beta, label_smoothing=self.label_smoothing)

    def first_loss(self) -> float:
        return math.log(2)  # for any label smoothing


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of Direct Preference Optimization (arXiv 2305.18290), equation 5, −log σ(Δ), and the rewards.

    `label_smoothing` is the assumed share ε of wrong labels (conservative DPO): −(1−ε) log σ(Δ) − ε log σ(−Δ).
    """
    from torch.nn.functional import logsigmoid

    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    delta = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * logsigmoid(delta) - label_smoothing * logsigmoid(-delta)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()
