"""Preference objectives as pure functions of tensors: no configuration, no model, no device.

Each takes log-probabilities of whole completions, one per pair (shape [batch]), and returns per-pair values, unreduced:
`(losses, chosen_rewards, rejected_rewards)`. Whether the log-probabilities are sums or means over tokens is the
caller's choice; SimPO is defined on means. Rewards are detached: they are for reading, not for training.

With a latent, the policy's log-probabilities are those given z; the reference never takes z. Equation numbers are those
of Latent Preference Coding (arXiv 2505.04993).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct Preference Optimization (arXiv 2305.18290), equation 5: −log σ(Δ).

    `label_smoothing` is the assumed share ε of wrong labels (conservative DPO): −(1−ε) log σ(Δ) − ε log σ(−Δ).
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    delta = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * F.logsigmoid(delta) - label_smoothing * F.logsigmoid(-delta)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def ipo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Identity Preference Optimization (arXiv 2310.12036), equation 13: (log-ratio difference − 1/(2τ))².

    The reward is τ times the log-ratio to the reference, so that its scale is that of DPO's with β = τ.
    """
    chosen_ratios = policy_chosen_logps - reference_chosen_logps
    rejected_ratios = policy_rejected_logps - reference_rejected_logps
    losses = (chosen_ratios - rejected_ratios - 1 / (2 * tau)) ** 2
    return losses, tau * chosen_ratios.detach(), tau * rejected_ratios.detach()


def simpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    beta: float,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """SimPO (arXiv 2405.14734), equation 12, on log-probabilities averaged over tokens; no reference.

    `margin` is the target margin γ_m itself, in units of the reward, not the ratio γ_m/β.
    """
    chosen_rewards = beta * policy_chosen_logps
    rejected_rewards = beta * policy_rejected_logps
    losses = -F.logsigmoid(chosen_rewards - rejected_rewards - margin)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def categorical_kl(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL( q ‖ p ) of two categorical distributions given by logits [..., K]: the second term of equation 7, in nats.

    Returns shape [...]; gradients flow into both.
    """
    log_q = F.log_softmax(posterior_logits, dim=-1)
    log_p = F.log_softmax(prior_logits, dim=-1)
    # A code of probability 0 under q adds 0, whatever p says; 0 * (-inf) would make that nan.
    return torch.where(log_q == -torch.inf, 0.0, log_q.exp() * (log_q - log_p)).sum(-1)


def code_information(prior_logits: Tensor) -> Tensor:
    """KL( p_b ‖ mean_b p ) of each prior [B, K] of a batch to the batch's mean prior, [B] in nats.

    Its mean over the batch is H(mean p) − mean H(p), the batch's estimate of I(code; prompt): 0 where the prior is the
    same for every prompt, be it uniform or one code, and at most the logarithm of the smaller of B and K. As a reward
    it is the one of regularised information maximisation (Krause, Perona, Gomes 2010).
    """
    log_mean = F.log_softmax(prior_logits, -1).logsumexp(0) - math.log(len(prior_logits))
    return categorical_kl(prior_logits, log_mean.expand_as(prior_logits))


def gaussian_kl(posterior_mean: Tensor, posterior_log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL( q ‖ p ) of two diagonal Gaussians [..., d], summed over d, in nats. For the Gaussian control of the
    latent."""
    variance_ratio = (2 * (posterior_log_std - prior_log_std)).exp()
    squared_shift = ((posterior_mean - prior_mean) / prior_log_std.exp()) ** 2
    return 0.5 * (variance_ratio + squared_shift - 1 - variance_ratio.log()).sum(-1)
