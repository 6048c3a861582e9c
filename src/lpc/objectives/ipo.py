"""Identity Preference Optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import REQUIRED, key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class IPO(Objective):
    title: ClassVar[str] = "IPO"

    name: Literal["ipo"]
    tau: float = key(REQUIRED, "regularisation", gt=0)
    reduction: Reduction = key("sum", "log-ratios over tokens: `sum` or `mean`, which need different `tau`")

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ipo(*logps, tau=self.tau)

    def first_loss(self) -> float:
        return (1 / (2 * self.tau)) ** 2


def ipo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of Identity Preference Optimization (arXiv 2310.12036), equation 13, (log-ratio difference −
    1/(2τ))², and the rewards.

    The reward is τ times the log-ratio to the reference, so that its scale is that of DPO's with β = τ.
    """
    chosen_ratios = policy_chosen_logps - reference_chosen_logps
    rejected_ratios = policy_rejected_logps - reference_rejected_logps
    losses = (chosen_ratios - rejected_ratios - 1 / (2 * tau)) ** 2
    return losses, tau * chosen_ratios.detach(), tau * rejected_ratios.detach()
