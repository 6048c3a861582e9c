"""ORPO: values by hand, a naive float64 version, extremes, the negative log-likelihood that belongs to it."""

import math

import pytest
import torch
from objective_checks import close

from lpc.objectives.orpo import ORPO, orpo

CASE = ORPO(name="orpo", weight=0.3)


def naive(chosen: float, rejected: float) -> float:
    log_odds = [math.log(math.exp(logp) / (1 - math.exp(logp))) for logp in (chosen, rejected)]
    return 0.3 * math.log(1 + math.exp(log_odds[1] - log_odds[0]))


def test_values():
    """Probabilities 0.5 and 0.2: odds 1 and 0.25, so the ratio is 4, and −log σ(log 4) = log 1.25."""
    losses, chosen, rejected = orpo(torch.tensor([0.5]).log(), torch.tensor([0.2]).log(), weight=2.0)
    close(losses, [2 * math.log(1.25)])
    close(chosen, [0.0], atol=1e-6, rtol=0)
    close(rejected, [-2 * math.log(4)])


def test_log_probabilities_are_means_over_tokens():
    """Two tokens of probability 0.5 against three of 0.2: the pair of `test_values`."""
    batch = {"chosen_tokens": torch.tensor([2]), "rejected_tokens": torch.tensor([3])}
    sums = torch.tensor([0.5**2]).log(), torch.tensor([0.2**3]).log()
    losses, *_ = ORPO(name="orpo", weight=2.0).evaluate(*sums, batch)
    close(losses, [2 * math.log(1.25)])


def test_the_likelihood_of_the_chosen_completion_has_weight_one():
    """−log π(y_w) of 6 nats over 3 tokens."""
    close(CASE.regularization(torch.tensor([-6.0]), {"chosen_tokens": torch.tensor([3])}), [2.0])


def test_against_naive_float64():
    """Values and gradients at mean log-probabilities from −0.001 to −20."""
    generator = torch.Generator().manual_seed(7)
    chosen, rejected = (
        -torch.exp(torch.empty(20, dtype=torch.float64).uniform_(-7, 3, generator=generator)) for _ in range(2)
    )
    inputs = [chosen.requires_grad_(), rejected.requires_grad_()]
    losses, _, _ = CASE.formula(*inputs)
    losses.sum().backward()
    for i in range(20):
        row = [x[i].item() for x in inputs]
        assert losses[i].item() == pytest.approx(naive(*row), rel=1e-9, abs=1e-12)
        for j, x in enumerate(inputs):
            step = 1e-6 * abs(row[j])
            up, down = row.copy(), row.copy()
            up[j] += step
            down[j] -= step
            assert x.grad[i].item() == pytest.approx((naive(*up) - naive(*down)) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sides", [(0.0, -1e4), (-1e4, 0.0), (0.0, 0.0), (-1e-9, -1e-9), (-1e4, -1e4)])
def test_extremes_stay_finite(sides):
    """At p = 1 in float32, too, where the odds are infinite."""
    inputs = [torch.full((2,), side, requires_grad=True) for side in sides]
    losses, chosen, rejected = CASE.formula(*inputs)
    losses.sum().backward()
    for value in (losses, chosen, rejected, *(x.grad for x in inputs)):
        assert torch.isfinite(value).all()
