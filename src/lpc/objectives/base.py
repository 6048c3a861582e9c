"""What a preference objective is: settings, and from them a loss of log-probabilities.

An objective is a file of this package with one subclass of `Objective` and the formula as a pure function of tensors,
without configuration, model or device. It takes log-probabilities of whole completions, one per pair (shape
[batch]), and returns per-pair values, unreduced: `(losses, chosen_rewards, rejected_rewards)`. Rewards are detached:
they are for reading, not for training. With a latent, the policy's log-probabilities are those given z; the reference
never takes z. Equation numbers are those of Latent Preference Coding (arXiv 2505.04993).

Functions import torch, modules of this package do not. The configuration reads the settings of every objective, each
job of a workflow reads the configuration, and torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import Section, key

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["sum", "mean"]


class Objective(Section):
    """One objective. A subclass declares its settings as keys, of which `name` is a Literal of one value.

    `reduction` is `sum` or `mean` of log-probabilities over the tokens of a completion. It is a ClassVar, or a key
    where the configuration chooses.
    """

    name: str

    title: ClassVar[str]
    """Its name in tables and figures."""
    needs_reference: ClassVar[bool] = True
    """Whether it reads log-probabilities of the base model."""

    nll_weight: float = key(0.0, "weight of the negative log-likelihood of the chosen completion, a token", ge=0)

    def formula(self, *logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(losses, chosen_rewards, rejected_rewards)` [B] of reduced log-probabilities [B]: of the policy,
        chosen and rejected, and of the reference, chosen and rejected, where it needs one."""
        raise NotImplementedError

    def first_loss(self) -> float | None:
        """Return the loss of every pair where the policy still equals the reference; None where it has no such value.

        It is that of `evaluate`, without what `regularization` adds.
        """
        return None

    def evaluate(
        self, chosen_logps: Tensor, rejected_logps: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(losses, chosen_rewards, rejected_rewards)` [B] of sums of log-probabilities [B].

        Where the policy's are those under each of K codes, [B, K], each result is [B, K]. `batch` gives the reference,
        `reference_chosen_logps` and `reference_rejected_logps` [B], and the lengths of completions, `chosen_tokens` and
        `rejected_tokens` [B].
        """
        logps = [chosen_logps, rejected_logps]
        if self.needs_reference:
            reference = (batch["reference_chosen_logps"], batch["reference_rejected_logps"])
            logps += [_beside(chosen_logps, value) for value in reference]
        if self.reduction == "mean":
            lengths = [_beside(chosen_logps, batch[name]) for name in ("chosen_tokens", "rejected_tokens")] * 2
            logps = [value / length for value, length in zip(logps, lengths[: len(logps)], strict=True)]
        return self.formula(*logps)

    def log_ratios(
        self, chosen_logps: Tensor, rejected_logps: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the rewards of equation 4 of chosen and rejected: β log π/π_ref, a sum over tokens.

        The paper measures accuracy with it, of objectives too that are trained without a reference. β is the
        objective's own, 1 where it has none. Arguments: as of `evaluate`.
        """
        beta = getattr(self, "beta", 1.0)
        sides = (chosen_logps, "reference_chosen_logps"), (rejected_logps, "reference_rejected_logps")
        chosen, rejected = (beta * (logps - _beside(logps, batch[name])) for logps, name in sides)
        return chosen, rejected

    def regularization(self, chosen_logps: Tensor, batch: dict[str, Tensor]) -> Tensor | float:
        """Return what training adds to the losses of `evaluate` [B]; it changes no reward. Arguments as there.

        This is `nll_weight` times −log π(y_w | x) / |y_w|, as in RPO (arXiv 2404.19733), where |y_w| counts tokens.
        """
        if not self.nll_weight:
            return 0.0  # not 0 times a sum: that has a gradient, which is nan where the sum is infinite
        return self.nll_weight * -chosen_logps / _beside(chosen_logps, batch["chosen_tokens"])


def _beside(logps: Tensor, values: Tensor) -> Tensor:
    """Return `values` [B] in a shape that meets `logps` [B] or [B, K] pair by pair."""
    return values.reshape(-1, *[1] * (logps.dim() - 1))
