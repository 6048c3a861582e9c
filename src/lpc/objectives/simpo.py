"""SimPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class SimPO(Objective):
    title: ClassVar[str] = "SimPO"
    needs_reference: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "mean"

    name: Literal["simpo"]
    beta: float = key(2.0, "scale of the reward", gt=0)
    margin: float = key(1.0, "target margin γ, in units of the reward", ge=0)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return simpo(*logps, beta=self.beta, margin=self.margin)


def simpo(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, *, beta: float, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return SimPO's loss (arXiv 2405.14734), equation 12, on log-probabilities averaged over tokens, and the rewards;
    no reference.

    `margin` is the target margin γ_m itself, in units of the reward, not the ratio γ_m/β.
    """
    from torch.nn.functional import logsigmoid

    chosen_rewards = beta * policy_chosen_logps
    rejected_rewards = beta * policy_rejected_logps
    losses = -logsigmoid(chosen_rewards - rejected_rewards - margin)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()
