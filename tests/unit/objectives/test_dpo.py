"""DPO: values by hand, a naive float64 version, extremes."""

import math

import torch
from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.dpo import DPO, dpo

CASE = DPO(name="dpo", beta=0.37, label_smoothing=0.2)


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def naive(logps: list[float], beta: float = CASE.beta, smoothing: float = CASE.label_smoothing) -> float:
    delta = beta * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    return (1 - smoothing) * softplus(-delta) + smoothing * softplus(delta)


def test_values():
    """Δ = 0.1·(0 − 0), 0.1·(0.1 + 9.9), 0.1·(−0.9 + 20.9) = 0, 1, 2; the loss is −log σ(Δ)."""
    losses, chosen, rejected = dpo(*LOGPS, beta=0.1)
    close(losses, [0.693147, 0.313262, 0.126928], atol=1e-6, rtol=0)
    close(chosen, [0.0, 0.01, -0.09], atol=1e-6, rtol=0)
    close(rejected, [0.0, -0.99, -2.09], atol=1e-6, rtol=0)


def test_values_with_label_smoothing():
    """ε = 0.1 adds 0.1·Δ, since −log σ(−Δ) = −log σ(Δ) + Δ."""
    losses, _, _ = dpo(*LOGPS, beta=0.1, label_smoothing=0.1)
    close(losses, [0.693147, 0.413262, 0.326928], atol=1e-6, rtol=0)


def test_mean_divides_by_the_length_of_each_completion():
    """Log-ratios 6 over 3 tokens and −4 over 2: Δ = 0.5·(2 + 2) = 2, the loss −log σ(2) = 0.126928."""
    batch = {"chosen_tokens": torch.tensor([3]), "rejected_tokens": torch.tensor([2])}
    batch |= {"reference_chosen_logps": torch.tensor([-9.0]), "reference_rejected_logps": torch.tensor([-1.0])}
    objective = DPO(name="dpo", beta=0.5, reduction="mean")
    losses, chosen, rejected = objective.evaluate(torch.tensor([-3.0]), torch.tensor([-5.0]), batch)
    close(losses, [0.126928], atol=1e-6, rtol=0)
    close(chosen, [1.0])
    close(rejected, [-1.0])


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)


def test_defaults():
    settings = DPO(name="dpo")
    assert (settings.beta, settings.label_smoothing, settings.reduction) == (0.1, 0.0, "sum")
