"""A mixture over codes: one loss and one reward of a pair from those under each of its K codes, and Bayes' rule."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def marginal_loss(log_prior: Tensor, losses: Tensor) -> Tensor:
    """Return −log Σ_k p_k exp(−ℓ_k) [...] of log p and losses ℓ [..., K].

    Where exp(−ℓ) is the likelihood of the label, as it is in DPO and SimPO, this is equation 6.
    """
    return -(log_prior - losses).logsumexp(-1)


def mixture_rewards(log_prior: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(chosen_rewards, rejected_rewards)` [...] of a mixture from those under each code, [..., K].

    Their difference is the log-odds of Σ_k p_k σ(Δ_k), the probability that the mixture prefers the chosen completion
    (equation 2 under each code). Their sum is that of the codes' mean rewards.
    """
    margins = chosen - rejected
    log_odds = (log_prior + logsigmoid(margins)).logsumexp(-1) - (log_prior + logsigmoid(-margins)).logsumexp(-1)
    middle = (log_prior.exp() * (chosen + rejected)).sum(-1) / 2
    return middle + log_odds / 2, middle - log_odds / 2


def infer_code(log_prior: Tensor, context_log_prior: Tensor, context_losses: Tensor) -> Tensor:
    """Return log p(k | x, context) [N, K] of N prompts x of one person, by Bayes' rule: ∝ π_k Π_i exp(−ℓ_ik).

    log_prior [N, K]: log p(k|x) of each prompt; context_log_prior, context_losses [C, K]: of C labelled pairs of the
    person under each code, such as −log σ(Δ_ik). π is the prior of a group as in training: the normalised geometric
    mean of those of the context and of x. With no pair (C = 0) the result is the prior of x.
    """
    prior = (context_log_prior.sum(0) + log_prior) / (len(context_losses) + 1)
    return (prior - context_losses.sum(0)).log_softmax(-1)
