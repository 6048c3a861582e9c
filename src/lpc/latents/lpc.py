"""The latent of Latent Preference Coding: codebook, prior, posterior, and z (equations 8, 9 and 11)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from lpc.config.keys import Integer, Role, key
from lpc.latents.base import LatentStep
from lpc.latents.variational import Variational, VariationalSettings

if TYPE_CHECKING:
    from torch import Tensor


class LPCSettings(VariationalSettings):
    kind: Literal["lpc"] = "lpc"
    codes: Integer = key(64, "K, the size of the codebook", ge=2)
    information_weight: float = key(
        0.0,
        "reward for I(code; prompt) = H(mean p) − mean H(p) of the prior, over the pairs that a device takes at once: "
        "many small micro-batches underestimate it",
        ge=0,
    )
    codebook_init: Literal["normal", "kmeans"] = key(
        "normal",
        "`kmeans`: codes start as centroids of the base's prompts and the prior as the nearest of them, with "
        "`logit_scale` the root mean square of its centred logits; needs `standardize`",
    )
    codebook_learning_rate: float | None = key(None, "peak, of the codes; null: as `latent.learning_rate`", gt=0)
    temperature: float = key(1.0, "of the Gumbel-softmax", gt=0)
    temperature_end: float | None = key(None, "at the end of training; null: constant", gt=0)
    straight_through: bool = key(False, "z of one code for each sample, with the gradient of its softmax")
    inference: Literal["mean", "mode", "sample"] = key(
        "mean", "z from the prior: the mean of the codes, the strongest one, or one drawn", role=Role.INFERENCE
    )

    @model_validator(mode="after")
    def _clusters_are_standardised(self) -> LPCSettings:
        if self.codebook_init == "kmeans" and not self.standardize:
            raise ValueError("codebook_init: kmeans needs standardize: true, or clusters are of raw features")
        return self


class LPC(Variational):
    """K codes, a prior over them from the prompt, a posterior from both completions."""

    title: ClassVar[str] = "LPC"
    Settings: ClassVar[type[LPCSettings]] = LPCSettings
    has_codes: ClassVar[bool] = True
    settings: LPCSettings

    def __init__(self, settings: LPCSettings, features: int):
        import torch
        from torch import nn

        super().__init__(settings, features)
        self.codebook = nn.Parameter(torch.randn(settings.codes, features) * settings.init_std)
        self.make_networks(settings.codes)

    @property
    def noise_size(self) -> int:
        return self.settings.codes if self.settings.gumbel_noise else 0

    @property
    def draw_size(self) -> int:
        return self.settings.codes if self.settings.inference == "sample" else 0

    def prior_logits(self, h_x: Tensor) -> Tensor:
        """Equation 9 before the softmax: [B, d] to [B, K]."""
        return self.prior_outputs(h_x)

    def posterior_logits(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Equation 8 before the softmax: [B, d] twice to [B, K]. It sees which completion won: never for a result."""
        return self.posterior_outputs(h_chosen, h_rejected)

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """z of equation 11, and KL( q ‖ p ); γ and the temperature follow `progress`, noise becomes Gumbel noise."""
        from lpc.latents.parts.divergences import categorical_kl

        if self.settings.detach:
            h_x, h_chosen, h_rejected = h_x.detach(), h_chosen.detach(), h_rejected.detach()
        prior_logits = self.prior_logits(h_x)
        posterior_logits = self.posterior_logits(h_chosen, h_rejected)
        temperature = self.temperature(progress)
        prior_sample, posterior_sample = prior_logits, posterior_logits
        if self.settings.gumbel_noise:
            gumbel = -(-noise.log()).log()
            prior_sample, posterior_sample = prior_logits + gumbel[:, 0], posterior_logits + gumbel[:, 1]
        gamma = self.gamma(progress)
        weights = gamma * self.code_weights(prior_sample / temperature)
        weights = weights + (1 - gamma) * self.code_weights(posterior_sample / temperature)
        return LatentStep(
            weights @ self.codebook, categorical_kl(posterior_logits, prior_logits), prior_logits, posterior_logits
        )

    def code_weights(self, logits: Tensor) -> Tensor:
        """Softmax [B, K] of logits; with `straight_through` the value is the largest one's code alone and the gradient
        that of the softmax (Jang, Gu, Poole, arXiv 1611.01144)."""
        from torch.nn.functional import one_hot

        weights = logits.softmax(-1)
        if not self.settings.straight_through:
            return weights
        code = one_hot(logits.argmax(-1), logits.shape[-1]).to(weights.dtype)
        return code + (weights - weights.detach())

    def temperature(self, progress: float) -> float:
        """Gumbel-softmax temperature: constant, or geometric from `temperature` to `temperature_end`."""
        start, end = self.settings.temperature, self.settings.temperature_end
        return start if end is None else start * math.exp(progress * math.log(end / start))

    def schedules(self, progress: float) -> dict[str, float]:
        return super().schedules(progress) | {"temperature": self.temperature(progress)}

    def cost(self, step: LatentStep, progress: float) -> Tensor:
        """As of every latent with a posterior, less `information_weight` times `code_information` among these pairs."""
        from lpc.latents.parts.divergences import code_information

        cost = super().cost(step, progress)
        if self.settings.information_weight:
            cost = cost - self.settings.information_weight * code_information(step.prior_logits)
        return cost

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """z [B, d] from the prior alone: `mean` Σ p_k e_k, `mode` the strongest code, or a `sample`d code."""
        logits = self.prior_logits(h_x)
        if self.settings.inference == "mean":
            return logits.softmax(-1) @ self.codebook
        if self.settings.inference == "sample":
            logits = logits - (-uniform.log()).log()  # Gumbel-max: the largest falls on code k with probability p_k
        return self.codebook[logits.argmax(-1)]

    def posterior_z(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        return self.posterior_logits(h_chosen, h_rejected).softmax(-1) @ self.codebook

    def force(self, code: int, batch: int) -> Tensor:
        if not 0 <= code < self.settings.codes:
            raise ValueError(f"code {code}: this latent has codes 0 to {self.settings.codes - 1}")
        return self.codebook[code].expand(batch, -1)

    def parameter_groups(self, learning_rate: float) -> list[tuple[list[str], float]]:
        ((names, rate),) = super().parameter_groups(learning_rate)
        names.remove("codebook")
        return [(names, rate), (["codebook"], self.settings.codebook_learning_rate or rate)]

    def start_from(self, statistics: dict[str, Tensor], seed: int) -> None:
        from lpc.latents.parts.clusters import start_from_clusters

        super().start_from(statistics, seed)
        if self.settings.codebook_init == "kmeans":
            start_from_clusters(self, statistics["prompt.sample"], seed)
