"""The latent of Latent Preference Coding: codebook, prior, posterior, and z (equations 8, 9 and 11)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import Role, key
from lpc.latents.base import Exported, LatentStep
from lpc.latents.codes import Codes, CodesSettings, gumbel
from lpc.latents.variational import Variational, VariationalSettings

if TYPE_CHECKING:
    from torch import Tensor


class LPCSettings(CodesSettings, VariationalSettings):
    kind: Literal["lpc"] = "lpc"
    information_weight: float = key(
        0.0,
        "reward for I(code; prompt) = H(mean p) − mean H(p) of the prior, over the pairs that a device takes at once: "
        "many small micro-batches underestimate it",
        ge=0,
    )
    temperature: float = key(1.0, "of the Gumbel-softmax", gt=0)
    temperature_end: float | None = key(None, "at the end of training; null: constant", gt=0)
    straight_through: bool = key(False, "z of one code for each sample, with the gradient of its softmax")
    inference: Literal["mean", "mode", "sample", "gumbel", "mixture"] = key(
        "mean",
        "z from the prior: the mean of the codes, the strongest one, one drawn, or a Gumbel-softmax sample as at the "
        "end of training; `mixture`: as of `exact`",
        role=Role.INFERENCE,
    )

    @property
    def compares_pairs(self) -> bool:
        return self.information_weight > 0


class LPC(Codes, Variational):
    """K codes, a prior over them from the prompt, a posterior from both completions."""

    title: ClassVar[str] = "LPC"
    Settings: ClassVar[type[LPCSettings]] = LPCSettings
    settings: LPCSettings

    def __init__(self, settings: LPCSettings, features: int):
        super().__init__(settings, features)
        self.make_networks(settings.codes)

    @property
    def noise_size(self) -> int:
        return self.settings.codes if self.settings.gumbel_noise else 0

    def posterior_logits(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Return the posterior of equation 8 before the softmax: [B, d] twice to [B, K]. It sees which completion won:
        never for a result."""
        return self.posterior_outputs(h_chosen, h_rejected)

    def combine(self, outputs: Tensor) -> Tensor:
        return outputs.sum(-2)

    def mean_z(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1) @ self.codebook

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """Return z of equation 11, and KL( q ‖ p ). γ and the temperature follow `progress`; the noise becomes Gumbel
        noise."""
        from lpc.latents.parts.divergences import categorical_kl

        if self.settings.detach:
            h_x, h_chosen, h_rejected = h_x.detach(), h_chosen.detach(), h_rejected.detach()
        prior_logits = self.prior_logits(h_x)
        posterior_logits = self.training_posterior(h_chosen, h_rejected)
        temperature = self.temperature(progress)
        prior_sample, posterior_sample = prior_logits, posterior_logits
        if self.settings.gumbel_noise:
            of_prior, of_posterior = gumbel(noise).unbind(1)
            prior_sample, posterior_sample = prior_logits + of_prior, posterior_logits + of_posterior
        gamma = self.gamma(progress)
        weights = gamma * self.code_weights(prior_sample / temperature)
        weights = weights + (1 - gamma) * self.code_weights(posterior_sample / temperature)
        return LatentStep(
            weights @ self.codebook, categorical_kl(posterior_logits, prior_logits), prior_logits, posterior_logits
        )

    def inferred_weights(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the weights of the codes, as every latent with codes does; `gumbel`: a Gumbel-softmax sample, as
        training's last step weighs the prior."""
        if self.settings.inference != "gumbel":
            return super().inferred_weights(h_x, uniform)
        return self.code_weights((self.prior_logits(h_x) + gumbel(uniform)) / self.temperature(1.0))

    def exported(self) -> Exported:
        exported = super().exported()
        if exported.rule == "gumbel" and self.settings.straight_through:
            exported.rule = "sample"  # the largest of noisy logits, which no temperature changes
        exported.temperature = self.temperature(1.0)
        return exported

    def code_weights(self, logits: Tensor) -> Tensor:
        """Return the softmax [B, K] of logits; with `straight_through` the value is the largest one's code alone and
        the gradient that of the softmax (Jang, Gu, Poole, arXiv 1611.01144)."""
        from torch.nn.functional import one_hot

        weights = logits.softmax(-1)
        if not self.settings.straight_through:
            return weights
        code = one_hot(logits.argmax(-1), logits.shape[-1]).to(weights.dtype)
        return code + (weights - weights.detach())

    def temperature(self, progress: float) -> float:
        """Return the Gumbel-softmax temperature: constant, or geometric from `temperature` to `temperature_end`."""
        start, end = self.settings.temperature, self.settings.temperature_end
        return start if end is None else start * math.exp(progress * math.log(end / start))

    def schedules(self, progress: float) -> dict[str, float]:
        return super().schedules(progress) | {"temperature": self.temperature(progress)}

    def cost(self, step: LatentStep, progress: float) -> Tensor:
        """Return the cost of every latent with a posterior, less `information_weight` times `code_information` among
        these pairs."""
        from lpc.latents.parts.divergences import code_information

        cost = super().cost(step, progress)
        if self.settings.information_weight:
            cost = cost - self.settings.information_weight * code_information(step.prior_logits)
        return cost
