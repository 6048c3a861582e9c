"""Robust DPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class RobustDPO(Objective):
    title: ClassVar[str] = "robust DPO"
    reduction: ClassVar[Reduction] = "sum"

    name: Literal["robust_dpo"]
    beta: float = key(0.1, "scale of the reward", gt=0)
    label_smoothing: float = key(0.1, "assumed share of wrong labels; 0: DPO", ge=0, lt=0.5)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return robust_dpo(*logps, beta=self.beta, label_smoothing=self.label_smoothing)

    def first_loss(self) -> float:
        return math.log(2)  # for any label smoothing


def robust_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of robust DPO (arXiv 2403.00409), (−(1−ε) log σ(Δ) + ε log σ(−Δ)) / (1−2ε), and the rewards.

    Δ is the difference of rewards, as in `dpo`. `label_smoothing` is the share ε of wrong labels. It is the
    paper's unbiased estimate: over labels that are wrong with that probability, the mean is DPO's loss on the right
    ones. The loss of one pair has no lower bound.
    """
    from torch.nn.functional import logsigmoid

    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    delta = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * logsigmoid(delta) + label_smoothing * logsigmoid(-delta)
    return losses / (1 - 2 * label_smoothing), chosen_rewards.detach(), rejected_rewards.detach()
