"""SimPO: values by hand, a naive float64 version, extremes."""

import math

from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.simpo import SimPO, simpo

CASE = SimPO(name="simpo", beta=2.3, margin=0.7)


def naive(logps: list[float]) -> float:
    x = -(CASE.beta * (logps[0] - logps[1]) - CASE.margin)
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def test_values():
    """2·(−0.5 + 0.1) − 0.5 = −1.3, and −log σ(−1.3) = 1.541008; the other pairs are 39.5 apart."""
    losses, chosen, rejected = simpo(*LOGPS[:2], beta=2, margin=0.5)
    close(losses, [1.541008, 0.0, 0.0], atol=1e-6, rtol=0)
    close(chosen, [-1.0, -20.0, -2.0])
    close(rejected, [-0.2, -60.0, -42.0])


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)


def test_defaults():
    settings = SimPO(name="simpo")
    assert (settings.beta, settings.margin) == (2.0, 1.0)
