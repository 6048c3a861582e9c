"""What latents with a posterior share: two networks, the mixing of their z by γ, and the cost of the KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lpc.config.keys import Integer, Role, Section, Seed, Share, key
from lpc.latents.base import Latent, LatentSettings, LatentStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class Gamma(Section):
    """Schedule of the weight of the prior in z."""

    start: Share = key(0.0, "weight of the prior in z at the start")
    end: Share = key(1.0, "and at the end; linear in between")
    until: float = key(1.0, "share of training at which it has reached its end", gt=0, le=1)


class VariationalSettings(LatentSettings):
    kl_weight: float = key(0.05, "λ, weight of the KL term", ge=0)
    kl_warmup: Share = key(0.0, "share of training over which λ rises from 0")
    free_bits: float = key(0.0, "nats of a pair's KL that cost nothing", ge=0)
    width: Annotated[Integer, Field(ge=1)] | None = key(
        None, "hidden units of the MLPs; null: the backbone's hidden size"
    )
    standardize: bool = key(False, "MLP inputs by mean and deviation of the base's hidden states")
    logit_scale: float = key(1.0, "scale of the MLPs' last layer at the start", gt=0)
    gumbel_noise: bool = key(True, "samples of prior and posterior, or their means")
    gamma: Gamma = key(Gamma(), "schedule of the weight of the prior in z")
    inference_seed: Seed = key(0, "of `sample`", role=Role.INFERENCE)
    detach: bool = key(False, "no gradient of prior and posterior into the backbone")

    @property
    def needs_statistics(self) -> bool:
        return self.standardize


class Variational(Latent):
    has_posterior: ClassVar[bool] = True
    settings: VariationalSettings
    prior: nn.Module
    posterior: nn.Module

    def make_networks(self, outputs: int) -> None:
        """Set prior and posterior, MLPs with `outputs` numbers a prompt, and what standardises their inputs."""
        from lpc.latents.parts.networks import Standardizer, two_layer_mlp

        features, width = self.features, self.settings.width or self.features
        self.prior = two_layer_mlp(features, width, outputs, self.settings.logit_scale)
        self.posterior = two_layer_mlp(2 * features, width, outputs, self.settings.logit_scale)
        self.prompt_standardizer = Standardizer(features)
        self.completion_standardizer = Standardizer(features)

    def prior_outputs(self, h_x: Tensor) -> Tensor:
        """Return the prior network's outputs of the prompt, h_x [B, d]."""
        return self.prior(self.prompt_standardizer(h_x))

    def posterior_outputs(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Return the posterior network's outputs of both completions, [B, d] each, the chosen one first."""
        import torch

        standardize = self.completion_standardizer
        return self.posterior(torch.cat([standardize(h_chosen), standardize(h_rejected)], dim=-1))

    def gamma(self, progress: float) -> float:
        """Return the weight of the prior in z: linear over the first share `until` of training, then constant."""
        gamma = self.settings.gamma
        return gamma.start + (gamma.end - gamma.start) * min(1.0, progress / gamma.until)

    def schedules(self, progress: float) -> dict[str, float]:
        return {"gamma": self.gamma(progress)}

    def cost(self, step: LatentStep, progress: float) -> Tensor:
        """Return the second term of equation 7 for each pair [B], and the departures from it that settings ask for.

        The KL of a pair up to `free_bits` nats costs nothing. Free bits are counted for each pair, as DreamerV3 does
        with its categorical latents (arXiv 2301.04104), so that the loss is the same for all micro-batches; Kingma et
        al. (arXiv 1606.04934) count them on the minibatch's mean. The weight rises from 0 over the first `kl_warmup`
        of training (arXiv 1511.06349).
        """
        settings = self.settings
        warmup = min(1.0, progress / settings.kl_warmup) if settings.kl_warmup else 1.0
        return settings.kl_weight * warmup * (step.kl - settings.free_bits).clamp_min(0)
