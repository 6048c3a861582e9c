"""Divergences between posterior and prior, and between priors, in nats; all differentiable."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def categorical_kl(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """Return KL( q ‖ p ) of two categorical distributions given by logits [..., K]: the second term of equation 7, in
    nats.

    Returns shape [...]; gradients flow into both.
    """
    log_q = F.log_softmax(posterior_logits, dim=-1)
    log_p = F.log_softmax(prior_logits, dim=-1)
    # A code of probability 0 under q adds 0, whatever p is; 0 * (-inf) would make that nan.
    return torch.where(log_q == -torch.inf, 0.0, log_q.exp() * (log_q - log_p)).sum(-1)


def code_information(prior_logits: Tensor) -> Tensor:
    """Return KL( p_b ‖ mean_b p ) of each prior [B, K] of a batch to the batch's mean prior, [B] in nats.

    Its mean over the batch is H(mean p) − mean H(p), the batch's estimate of I(code; prompt): 0 where the prior is the
    same for every prompt, be it uniform or one code, and at most the logarithm of the smaller of B and K. As a reward
    it is the one of regularised information maximisation (Krause, Perona, Gomes 2010).
    """
    log_mean = F.log_softmax(prior_logits, -1).logsumexp(0) - math.log(len(prior_logits))
    return categorical_kl(prior_logits, log_mean.expand_as(prior_logits))


def gaussian_kl(posterior_mean: Tensor, posterior_log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """Return KL( q ‖ p ) of two diagonal Gaussians [..., d], summed over d, in nats. It serves the Gaussian control of
    the latent."""
    variance_ratio = (2 * (posterior_log_std - prior_log_std)).exp()
    squared_shift = ((posterior_mean - prior_mean) / prior_log_std.exp()) ** 2
    return 0.5 * (variance_ratio + squared_shift - 1 - variance_ratio.log()).sum(-1)
