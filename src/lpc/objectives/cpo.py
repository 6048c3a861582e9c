"""Contrastive Preference Optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class CPO(Objective):
    title: ClassVar[str] = "CPO"
    needs_reference: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "sum"

    name: Literal["cpo"]
    beta: float = key(0.1, "scale of the reward", gt=0)
    nll_weight: float = key(1.0, "weight of the negative log-likelihood of the chosen completion, a token", ge=0)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cpo(*logps, beta=self.beta)


def cpo(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, *, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_prefer of Contrastive Preference Optimization (arXiv 2401.08417), equation 3, −log σ(Δ), and the
    rewards β log π; no reference.

    The paper's whole loss adds the negative log-likelihood of the chosen completion (equation 5), which is
    `nll_weight`. It is a mean over tokens, as in the authors' code.
    """
    from torch.nn.functional import logsigmoid

    chosen_rewards = beta * policy_chosen_logps
    rejected_rewards = beta * policy_rejected_logps
    return -logsigmoid(chosen_rewards - rejected_rewards), chosen_rewards.detach(), rejected_rewards.detach()
