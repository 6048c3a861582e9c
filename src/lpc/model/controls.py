"""Controls for the latent: as many extra parameters, but no discrete codes. Same interface as
`lpc.model.latent.Latent`.

They answer whether a gain of LPC comes from its codes or only from its parameters.
"""

import torch
from torch import Tensor, nn

from lpc.latents.parts.divergences import gaussian_kl
from lpc.model.latent import Latent, LatentConfig, LatentStep, Standardizer, two_layer_mlp


class VectorControl(nn.Module):
    """One learned vector for every prompt: z without any information."""

    noise_size = 0

    def __init__(self, config: LatentConfig, features: int):
        super().__init__()
        self.config, self.features = config, features
        self.vector = nn.Parameter(torch.randn(features) * config.init_std)

    def forward(self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise=None) -> LatentStep:
        return LatentStep(self.infer(h_x), h_x.new_zeros(len(h_x), dtype=torch.float32))

    def infer(self, h_x: Tensor, generator=None) -> Tensor:
        return self.vector.expand(len(h_x), -1)


class MLPControl(nn.Module):
    """z = MLP(h_x), of the size that makes the parameter count that of the latent with the same settings, or just
    above."""

    noise_size = 0

    def __init__(self, config: LatentConfig, features: int):
        super().__init__()
        self.config, self.features = config, features
        width = config.width or features
        parameters = features * width * 3 + config.codes * (2 * width + 2 + features) + 2 * width
        self.mlp = two_layer_mlp(features, -(-(parameters - features) // (2 * features + 1)), features)
        with torch.no_grad():
            # z starts as small as the codebook's would, so that the first loss is that of the plain objective.
            self.mlp[2].weight.normal_(std=config.init_std / self.mlp[2].in_features ** 0.5)
            self.mlp[2].bias.zero_()
        self.prompt_standardizer = Standardizer(features)

    def forward(self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise=None) -> LatentStep:
        h_x = h_x.detach() if self.config.detach else h_x
        return LatentStep(self.infer(h_x), h_x.new_zeros(len(h_x), dtype=torch.float32))

    def infer(self, h_x: Tensor, generator=None) -> Tensor:
        return self.mlp(self.prompt_standardizer(h_x))


class GaussianLatent(nn.Module):
    """The same ELBO with a continuous z: prior and posterior are diagonal Gaussians, γ mixes their samples."""

    def __init__(self, config: LatentConfig, features: int):
        super().__init__()
        self.config, self.features = config, features
        width = config.width or features
        self.prior = two_layer_mlp(features, width, 2 * features, config.logit_scale)
        self.posterior = two_layer_mlp(2 * features, width, 2 * features, config.logit_scale)
        # The networks speak in units of init_std, so that z starts as small as the codebook's would.
        self.prompt_standardizer = Standardizer(features)
        self.completion_standardizer = Standardizer(features)

    @property
    def noise_size(self) -> int:
        return self.features if self.config.gumbel_noise else 0

    gamma = Latent.gamma

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        if self.config.detach:
            h_x, h_chosen, h_rejected = h_x.detach(), h_chosen.detach(), h_rejected.detach()
        prior_mean, prior_log_std = self.prior(self.prompt_standardizer(h_x)).chunk(2, -1)
        completions = [self.completion_standardizer(h) for h in (h_chosen, h_rejected)]
        posterior_mean, posterior_log_std = self.posterior(torch.cat(completions, -1)).chunk(2, -1)
        prior_sample, posterior_sample = prior_mean, posterior_mean
        if self.config.gumbel_noise:
            normal = torch.erfinv(2 * noise - 1) * 2**0.5
            prior_sample = prior_mean + prior_log_std.exp() * normal[:, 0]
            posterior_sample = posterior_mean + posterior_log_std.exp() * normal[:, 1]
        gamma = self.gamma(progress)
        z = self.config.init_std * (gamma * prior_sample + (1 - gamma) * posterior_sample)
        return LatentStep(z, gaussian_kl(posterior_mean, posterior_log_std, prior_mean, prior_log_std))

    def infer(self, h_x: Tensor, generator=None) -> Tensor:
        return self.config.init_std * self.prior(self.prompt_standardizer(h_x)).chunk(2, -1)[0]


KINDS = {"lpc": Latent, "vector": VectorControl, "mlp": MLPControl, "gaussian": GaussianLatent}


def build_latent(config: dict, features: int, seed: int) -> nn.Module:
    """The latent of a recipe, float32, initialised from `seed` without touching the global random state, so that plain
    and latent runs see the same data order and dropout."""
    settings = LatentConfig(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[settings.kind](settings, features)
