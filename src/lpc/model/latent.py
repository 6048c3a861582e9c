"""The latent of Latent Preference Coding: codebook, prior, posterior, and z (equations 8, 9 and 11)."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpc.latents.parts.divergences import categorical_kl, code_information


@dataclass(frozen=True)
class LatentConfig:
    """Settings of a latent, as in the configuration's `recipes.<name>.latent`; the defaults are the paper's or ours
    where it is silent. Fields that only training reads (rates, weights, schedules) are kept, so that a saved run says
    them."""

    kind: str = "lpc"
    codes: int = 64
    kl_weight: float = 0.05
    kl_warmup: float = 0.0
    free_bits: float = 0.0
    information_weight: float = 0.0
    codebook_init: str = "normal"
    init_std: float = 0.02
    width: int | None = None
    learning_rate: float | None = 1e-4
    codebook_learning_rate: float | None = None
    standardize: bool = False
    logit_scale: float = 1.0
    temperature: float = 1.0
    temperature_end: float | None = None
    gumbel_noise: bool = True
    straight_through: bool = False
    gamma: dict = field(default_factory=lambda: {"start": 0.0, "end": 1.0, "until": 1.0})
    inference: str = "mean"
    inference_seed: int = 0
    detach: bool = False
    latent_first: float = 0.0


@dataclass
class LatentStep:
    """What one training step needs of the latent. z [B, d]; kl [B] in nats (0 where the kind has none); the logits
    [B, K] of kinds with codes, else None."""

    z: Tensor
    kl: Tensor
    prior_logits: Tensor | None = None
    posterior_logits: Tensor | None = None


def latent_cost(config: LatentConfig, step: LatentStep, progress: float) -> Tensor:
    """What the latent adds to the objective of each pair [B]: the second term of equation 7, and the departures from
    it that `config` asks for.

    The KL of a pair up to `free_bits` nats costs nothing. Free bits are counted for each pair, as DreamerV3 does with
    its categorical latents (arXiv 2301.04104), so that the loss is the same for all micro-batches; Kingma et al.
    (arXiv 1606.04934) count them on the minibatch's mean. The weight rises from 0 over the first `kl_warmup` of
    training (arXiv 1511.06349). `information_weight` rewards `code_information` among the pairs given here.
    """
    warmup = min(1.0, progress / config.kl_warmup) if config.kl_warmup else 1.0
    cost = config.kl_weight * warmup * (step.kl - config.free_bits).clamp_min(0)
    if config.information_weight:
        cost = cost - config.information_weight * code_information(step.prior_logits)
    return cost


def two_layer_mlp(inputs: int, width: int, outputs: int, output_scale: float = 1.0) -> nn.Sequential:
    """Linear, GELU, Linear; `output_scale` multiplies the last layer's initial weights."""
    mlp = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
    with torch.no_grad():
        mlp[2].weight.mul_(output_scale)
    return mlp


class Standardizer(nn.Module):
    """(h − mean) / std per feature, with statistics of the base model's training pairs; the identity until they are
    set. The result has the latent's own type, float32, whatever the backbone's.

    Why: where every prompt ends in the same template token, h_x is a large constant plus a small signal.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, h: Tensor) -> Tensor:
        return (h.to(self.mean.dtype) - self.mean) / self.std


class Latent(nn.Module):
    """K codes, a prior over them from the prompt, a posterior from both completions.

    All arithmetic is float32, whatever the backbone's type: the modules are small and z is a small number added to a
    large one.
    """

    def __init__(self, config: LatentConfig, features: int):
        super().__init__()
        self.config, self.features = config, features
        width = config.width or features
        self.codebook = nn.Parameter(torch.randn(config.codes, features) * config.init_std)
        self.prior = two_layer_mlp(features, width, config.codes, config.logit_scale)
        self.posterior = two_layer_mlp(2 * features, width, config.codes, config.logit_scale)
        self.prompt_standardizer = Standardizer(features)
        self.completion_standardizer = Standardizer(features)

    @property
    def noise_size(self) -> int:
        """Uniform numbers per pair and network that `forward` wants; 0 where training is without noise."""
        return self.config.codes if self.config.gumbel_noise else 0

    def prior_logits(self, h_x: Tensor) -> Tensor:
        """Equation 9 before the softmax: [B, d] to [B, K]."""
        return self.prior(self.prompt_standardizer(h_x))

    def posterior_logits(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Equation 8 before the softmax: [B, d] twice to [B, K]. It sees which completion won: never for a result."""
        standardize = self.completion_standardizer
        return self.posterior(torch.cat([standardize(h_chosen), standardize(h_rejected)], dim=-1))

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """z of equation 11 for training, and KL( q ‖ p ).

        h_x, h_chosen, h_rejected [B, d]: last hidden states at the end of the prompt, of prompt + chosen and of
        prompt + rejected. `progress` in [0, 1] is the share of training done; γ and the temperature follow it.
        noise [B, 2, K]: uniform in (0, 1), for prior and posterior; it becomes Gumbel noise here.
        """
        if self.config.detach:
            h_x, h_chosen, h_rejected = h_x.detach(), h_chosen.detach(), h_rejected.detach()
        prior_logits = self.prior_logits(h_x)
        posterior_logits = self.posterior_logits(h_chosen, h_rejected)
        temperature = self.temperature(progress)
        prior_sample, posterior_sample = prior_logits, posterior_logits
        if self.config.gumbel_noise:
            gumbel = -torch.log(-torch.log(noise))
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
        weights = F.softmax(logits, -1)
        if not self.config.straight_through:
            return weights
        code = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(weights.dtype)
        return code + (weights - weights.detach())

    def gamma(self, progress: float) -> float:
        """Weight of the prior in z: linear over the first share `until` of training, then constant."""
        start, end, until = (self.config.gamma[key] for key in ("start", "end", "until"))
        return start + (end - start) * min(1.0, progress / until)

    def temperature(self, progress: float) -> float:
        """Gumbel-softmax temperature: constant, or geometric from `temperature` to `temperature_end`."""
        start, end = self.config.temperature, self.config.temperature_end
        return start if end is None else start * math.exp(progress * math.log(end / start))

    def from_weights(self, weights: Tensor) -> Tensor:
        """z [B, d] of code weights [B, K]."""
        return weights @ self.codebook

    def infer(self, h_x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z [B, d] from the prior alone, as at inference: `mean` Σ p_k e_k, `mode` the strongest code, or a `sample`d
        code."""
        probabilities = F.softmax(self.prior_logits(h_x), -1)
        if self.config.inference == "mean":
            return self.from_weights(probabilities)
        if self.config.inference == "mode":
            return self.codebook[probabilities.argmax(-1)]
        return self.codebook[torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)]

    def force(self, code: int, batch: int) -> Tensor:
        """z [batch, d] of one code alone."""
        if not 0 <= code < self.config.codes:
            raise ValueError(f"code {code}: this latent has codes 0 to {self.config.codes - 1}")
        return self.codebook[code].expand(batch, -1)
