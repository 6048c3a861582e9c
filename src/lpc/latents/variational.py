"""What latents with a posterior share: two networks, the mixing of their z by γ, and the cost of the KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lpc.config.keys import Integer, Section, Share, key
from lpc.latents.base import LatentStep
from lpc.latents.prior import Prior, PriorSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Gamma(Section):
    """Schedule of the weight of the prior in z."""

    start: Share = key(0.0, "weight of the prior in z at the start")
    end: Share = key(1.0, "and at the end; linear in between")
    until: float = key(1.0, "share of training at which it has reached its end", gt=0, le=1)


class VariationalSettings(PriorSettings):
    kl_weight: float = key(0.05, "λ, weight of the KL term", ge=0)
    kl_warmup: Share = key(0.0, "share of training over which λ rises from 0")
    free_bits: float = key(0.0, "nats of a pair's KL that cost nothing", ge=0)
    gumbel_noise: bool = key(True, "samples of prior and posterior, or their means")
    gamma: Gamma = key(Gamma(), "schedule of the weight of the prior in z")
    group_size: Integer = key(
        1,
        "pairs of one group (`datasets.<name>.group`); the posterior of each is inferred from the others of them, and "
        "so does not see its label. Divides `micro_batch_size`; 1: from the pair itself",
        ge=1,
    )

    @property
    def pairs_together(self) -> int:
        return self.group_size


class Variational(Prior):
    has_posterior: ClassVar[bool] = True
    settings: VariationalSettings
    posterior: nn.Module

    def make_networks(self, outputs: int) -> None:
        """Set prior and posterior, MLPs with `outputs` numbers a prompt, and what standardises their inputs."""
        from lpc.latents.parts.networks import Standardizer, two_layer_mlp

        self.make_prior(outputs)
        width = self.settings.width or self.features
        self.posterior = two_layer_mlp(2 * self.features, width, outputs, self.settings.logit_scale)
        self.completion_standardizer = Standardizer(self.features)

    def posterior_outputs(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Return the posterior network's outputs of both completions, [B, d] each, the chosen one first."""
        import torch

        standardize = self.completion_standardizer
        return self.posterior(torch.cat([standardize(h_chosen), standardize(h_rejected)], dim=-1))

    def combine(self, outputs: Tensor) -> Tensor:
        """Return the product of the posteriors of n pairs, from the network's outputs of each: [..., n, m] to [..., m].

        A product of experts (Hinton 2002; for variational posteriors, Wu and Goodman, arXiv 1802.05335).
        """
        raise NotImplementedError

    def mean_z(self, outputs: Tensor) -> Tensor:
        """Return the mean of z under a posterior, from the network's outputs or those of `combine`: [..., d]."""
        raise NotImplementedError

    def posterior_z(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        return self.mean_z(self.posterior_outputs(h_chosen, h_rejected))

    def training_posterior(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Return the outputs for the posterior of each pair [B, m]: its own, or those of the others of its group."""
        import torch

        outputs, size = self.posterior_outputs(h_chosen, h_rejected), self.settings.group_size
        if size == 1:
            return outputs
        pairs = torch.arange(size, device=outputs.device)
        others = pairs.expand(size, size)[~torch.eye(size, dtype=torch.bool, device=outputs.device)].view(size, -1)
        return self.combine(outputs.unflatten(0, (-1, size))[:, others]).flatten(0, 1)

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
