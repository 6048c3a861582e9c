"""CPO: values by hand, a naive float64 version, extremes, the negative log-likelihood that belongs to it."""

import math

import torch
from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.cpo import CPO, cpo

CASE = CPO(name="cpo", beta=0.37)


def naive(logps: list[float]) -> float:
    x = -CASE.beta * (logps[0] - logps[1])
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def test_values():
    """0.5 · (−0.5 + 0.1) = −0.2, and −log σ(−0.2) = 0.798139; the other pairs are 10 apart."""
    losses, chosen, rejected = cpo(*LOGPS[:2], beta=0.5)
    close(losses, [0.798139, 4.5398e-05, 4.5398e-05], atol=1e-6, rtol=0)
    close(chosen, [-0.25, -5.0, -0.5])
    close(rejected, [-0.05, -15.0, -10.5])


def test_log_probabilities_are_sums_over_tokens():
    """−2 against −6 nats, of 2 and 5 tokens: 0.5 · 4 = 2, and −log σ(2) = 0.126928."""
    batch = {"chosen_tokens": torch.tensor([2]), "rejected_tokens": torch.tensor([5])}
    losses, *_ = CPO(name="cpo", beta=0.5).evaluate(torch.tensor([-2.0]), torch.tensor([-6.0]), batch)
    close(losses, [0.126928], atol=1e-6, rtol=0)


def test_the_likelihood_of_the_chosen_completion_has_weight_one():
    """−log π(y_w) of 6 nats over 3 tokens."""
    close(CASE.regularization(torch.tensor([-6.0]), {"chosen_tokens": torch.tensor([3])}), [2.0])


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)
