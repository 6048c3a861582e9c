"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import key
from lpc.objectives.base import Objective, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class ORPO(Objective):
    title: ClassVar[str] = "ORPO"
    needs_reference: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "mean"

    name: Literal["orpo"]
    weight: float = key(0.1, "weight λ of the odds ratio", gt=0)
    nll_weight: float = key(1.0, "weight of the negative log-likelihood of the chosen completion, a token", ge=0)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return orpo(*logps, weight=self.weight)


def orpo(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, *, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return λ L_OR of Odds Ratio Preference Optimization (arXiv 2403.07691), equation 7, on log-probabilities averaged
    over tokens, and as rewards λ log odds (equation 4); no reference.

    L_OR is −log σ of the log odds ratio. The paper's whole loss (equation 6) adds the negative log-likelihood of the
    chosen completion, which is `nll_weight`.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = _log_odds(policy_chosen_logps), _log_odds(policy_rejected_logps)
    return -weight * logsigmoid(chosen - rejected), weight * chosen.detach(), weight * rejected.detach()


def _log_odds(logps: Tensor) -> Tensor:
    """Return log(p / (1 − p)). Above 1 − ε of the type p counts as that, since the odds of p = 1 are infinite."""
    import torch

    logps = logps.clamp_max(-torch.finfo(logps.dtype).eps)
    return logps - (-logps.expm1()).log()
