"""Equation 6 itself: the loss of every code, weighed by the prior. No posterior, no sample, no bound.

−log Σ_k p(k|x) σ(Δ_k) has K terms, and one product with the LM head gives the log-probabilities under all codes. The
gradient weighs each code by its responsibility r_k ∝ p(k|x) σ(Δ_k), which is the true posterior, and moves p towards r,
as the gate of a mixture of experts learns. So nothing that approximates a posterior has a setting here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import Role, key
from lpc.latents.base import LatentStep
from lpc.latents.codes import Codes, CodesSettings

if TYPE_CHECKING:
    from torch import Tensor


class ExactSettings(CodesSettings):
    kind: Literal["exact"] = "exact"
    inference: Literal["mixture", "mean", "mode", "sample"] = key(
        "mixture",
        "`mixture`: pairs are scored by all codes, Σ_k p(k|x) σ(Δ_k), and texts are written with one that is drawn; "
        "else z from the prior: the mean of the codes, the strongest one, or one drawn",
        role=Role.INFERENCE,
    )


class Exact(Codes):
    """K codes, a prior over them from the prompt, and their mixture.

    exp(−loss) takes the place of σ(Δ_k). It is the likelihood of the label in DPO and SimPO. In objectives without one
    (IPO, SLiC, DPO with label smoothing) the result is a soft minimum over the codes' losses.
    """

    title: ClassVar[str] = "LPC, exact"
    Settings: ClassVar[type[ExactSettings]] = ExactSettings
    marginal: ClassVar[bool] = True
    settings: ExactSettings

    def __init__(self, settings: ExactSettings, features: int):
        super().__init__(settings, features)
        self.make_prior(settings.codes)

    @property
    def is_mixture(self) -> bool:
        return self.settings.inference == "mixture"

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """The prior, and as z its mean code, which no loss uses. The codes themselves are `codebook`."""
        logits = self.prior_logits(h_x.detach() if self.settings.detach else h_x)
        return LatentStep(logits.softmax(-1) @ self.codebook, h_x.new_zeros(len(h_x)).float(), logits)

    def marginalise(
        self, step: LatentStep, losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from lpc.latents.parts.divergences import categorical_kl
        from lpc.latents.parts.mixture import marginal_loss, mixture_rewards

        log_prior = step.prior_logits.log_softmax(-1)
        responsibilities = (log_prior - losses).detach()
        step.posterior_logits, step.kl = responsibilities, categorical_kl(responsibilities, log_prior.detach())
        return marginal_loss(log_prior, losses), *mixture_rewards(log_prior.detach(), chosen_rewards, rejected_rewards)
