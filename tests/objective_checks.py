"""What holds for every objective: each test of one calls these with a naive version of its formula."""

from collections.abc import Callable

import pytest
import torch

from lpc.objectives.base import Objective

# Log-probabilities of three pairs: of the policy, chosen and rejected, and of the reference, chosen and rejected.
LOGPS = (
    torch.tensor([-0.5, -10.0, -1.0]),
    torch.tensor([-0.1, -30.0, -21.0]),
    torch.tensor([-0.5, -10.1, -0.1]),
    torch.tensor([-0.1, -20.1, -0.1]),
)


def close(actual, expected, **options):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **options)


def count(objective: Objective) -> int:
    """Log-probabilities that its formula takes."""
    return 4 if objective.needs_reference else 2


def against_naive(objective: Objective, naive: Callable[[list[float]], float]) -> None:
    """Values and gradients of the formula in float64 against `naive` (of one pair, and its central differences), up to
    log-probabilities of ±1e4."""
    for scale in (1.0, 50.0, 1e4):
        generator = torch.Generator().manual_seed(7)
        inputs = [
            (torch.randn(20, generator=generator, dtype=torch.float64) * scale).requires_grad_()
            for _ in range(count(objective))
        ]
        losses, _, _ = objective.formula(*inputs)
        losses.sum().backward()
        for i in range(20):
            row = [x[i].item() for x in inputs]
            assert losses[i].item() == pytest.approx(naive(row), rel=1e-9, abs=1e-12)
            for j, x in enumerate(inputs):
                step = 1e-4 * max(1, scale * 1e-3)
                up, down = row.copy(), row.copy()
                up[j] += step
                down[j] -= step
                slope = (naive(up) - naive(down)) / (2 * step)
                assert x.grad[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def stays_finite(objective: Objective) -> None:
    """Losses, rewards and gradients in float32 at log-probabilities of ±1e4."""
    for sign in (1, -1):
        inputs = [torch.full((3,), sign * 1e4 * (-1) ** i, requires_grad=True) for i in range(count(objective))]
        losses, chosen, rejected = objective.formula(*inputs)
        losses.sum().backward()
        for value in (losses, chosen, rejected, *(x.grad for x in inputs)):
            assert torch.isfinite(value).all()
