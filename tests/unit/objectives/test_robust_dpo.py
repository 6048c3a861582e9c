"""Robust DPO: values by hand, a naive float64 version, its mean over wrong labels, extremes."""

import math

import pytest
import torch
from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.dpo import dpo
from lpc.objectives.robust_dpo import RobustDPO, robust_dpo

CASE = RobustDPO(name="robust_dpo", beta=0.37, label_smoothing=0.2)


def naive(logps: list[float]) -> float:
    delta = CASE.beta * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    softplus = lambda x: max(x, 0) + math.log1p(math.exp(-abs(x)))  # noqa: E731
    return (0.8 * softplus(-delta) - 0.2 * softplus(delta)) / 0.6


def test_values():
    """β = 0.1, ε = 0.25: Δ = 0, 1, 2. At 1: (0.75 · 0.313262 − 0.25 · 1.313262) / 0.5 = −0.186738."""
    losses, chosen, rejected = robust_dpo(*LOGPS, beta=0.1, label_smoothing=0.25)
    close(losses, [math.log(2), -0.186738, -0.873072], atol=1e-6, rtol=0)
    close(chosen - rejected, [0.0, 1.0, 2.0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_the_mean_over_wrong_labels_is_the_loss_of_dpo(share):
    """A share ε of the labels is wrong: the mean of the losses is DPO's under right labels."""
    swapped = [LOGPS[i] for i in (1, 0, 3, 2)]
    right, wrong = (robust_dpo(*logps, beta=0.1, label_smoothing=share)[0] for logps in (LOGPS, swapped))
    torch.testing.assert_close((1 - share) * right + share * wrong, dpo(*LOGPS, beta=0.1)[0])


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)
