"""A control for the latent: the same ELBO with a continuous z. Prior and posterior are diagonal Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import Role, key
from lpc.latents.base import Exported, LatentStep
from lpc.latents.variational import Variational, VariationalSettings

if TYPE_CHECKING:
    from torch import Tensor


class GaussianSettings(VariationalSettings):
    kind: Literal["gaussian"] = "gaussian"
    inference: Literal["mean", "sample"] = key("mean", "z from the prior: its mean, or drawn", role=Role.INFERENCE)


class Gaussian(Variational):
    """γ mixes samples of prior and posterior. The networks' outputs are in units of `scale`, so that z starts as small
    as the codebook's would."""

    title: ClassVar[str] = "Gaussian"
    Settings: ClassVar[type[GaussianSettings]] = GaussianSettings
    settings: GaussianSettings

    def __init__(self, settings: GaussianSettings, features: int):
        import torch

        super().__init__(settings, features)
        self.make_networks(2 * features)
        self.register_buffer("scale", torch.tensor(settings.code_scale))

    def rescale(self, unit: float) -> None:
        super().rescale(unit)
        self.scale.mul_(unit)

    @property
    def noise_size(self) -> int:
        return self.features if self.settings.gumbel_noise else 0

    @property
    def draw_size(self) -> int:
        return self.features if self.settings.inference == "sample" else 0

    def combine(self, outputs: Tensor) -> Tensor:
        """Return the product of Gaussians: precisions add, and each mean counts by its precision."""
        import torch

        means, log_stds = outputs.chunk(2, -1)
        log_precision = (-2 * log_stds).logsumexp(-2)
        mean = ((-2 * log_stds).softmax(-2) * means).sum(-2)
        return torch.cat([mean, -log_precision / 2], -1)

    def mean_z(self, outputs: Tensor) -> Tensor:
        return self.scale * outputs.chunk(2, -1)[0]

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """Return z and KL( q ‖ p ). The noise becomes standard normal noise."""
        from lpc.latents.parts.divergences import gaussian_kl

        if self.settings.detach:
            h_x, h_chosen, h_rejected = h_x.detach(), h_chosen.detach(), h_rejected.detach()
        prior_mean, prior_log_std = self.prior_outputs(h_x).chunk(2, -1)
        posterior_mean, posterior_log_std = self.training_posterior(h_chosen, h_rejected).chunk(2, -1)
        prior_sample, posterior_sample = prior_mean, posterior_mean
        if self.settings.gumbel_noise:
            normal = _normal(noise)
            prior_sample = prior_mean + prior_log_std.exp() * normal[:, 0]
            posterior_sample = posterior_mean + posterior_log_std.exp() * normal[:, 1]
        gamma = self.gamma(progress)
        z = self.scale * (gamma * prior_sample + (1 - gamma) * posterior_sample)
        return LatentStep(z, gaussian_kl(posterior_mean, posterior_log_std, prior_mean, prior_log_std))

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return z [B, d] from the prior alone: its `mean`, or a `sample`."""
        mean, log_std = self.prior_outputs(h_x).chunk(2, -1)
        if self.settings.inference == "sample":
            mean = mean + log_std.exp() * _normal(uniform)
        return self.scale * mean

    def exported(self) -> Exported:
        tensors = {"scale": self.scale, **self.exported_prior()}
        if self.settings.inference == "sample":
            return Exported("normal", tensors, seed=self.settings.inference_seed)
        for name in ("output_weight", "output_bias"):
            tensors[name] = tensors[name][: self.features]
        return Exported("value", tensors)


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones in (0, 1), by the inverse distribution function."""
    return (2 * uniform - 1).erfinv() * 2**0.5
