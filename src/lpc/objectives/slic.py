"""SLiC's hinge."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class SLiC(Objective):
    title: ClassVar[str] = "SLiC"
    reduction: ClassVar[Reduction] = "sum"

    name: Literal["slic"]
    beta: float = key(0.1, "scale of the reward; a pair with a reward margin of 1 costs nothing", gt=0)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return slic(*logps, beta=self.beta)

    def first_loss(self) -> float:
        return 1.0


def slic(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hinge loss of Generalized Preference Optimization (arXiv 2402.05749, table 1), max(0, 1 − Δ), and the
    rewards.

    It is SLiC's (arXiv 2305.10425) on log-ratios to the reference; Δ is the difference of rewards, as in `dpo`.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    losses = (1 - (chosen_rewards - rejected_rewards)).clamp_min(0)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()
