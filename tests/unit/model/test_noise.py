"""Uniform numbers as a function of what they belong to."""

import math

import torch

from lpc.model.noise import counter_uniform


def test_counter_uniform_is_uniform_and_a_function_of_its_arguments():
    """Moments within 5 sigma; rows, steps and seeds differ; the same for any batch composition."""
    u = counter_uniform(1, 2, torch.arange(1000), 64)
    count = u.numel()
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(u.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    assert abs(torch.corrcoef(u[:, :2].T)[0, 1].item()) < 5 / math.sqrt(1000)
    assert abs(torch.corrcoef(u[:2])[0, 1].item()) < 5 / math.sqrt(64)
    assert len(u.unique()) > 0.99 * count
    assert torch.equal(u[torch.tensor([7, 3])], counter_uniform(1, 2, torch.tensor([7, 3]), 64))
    for other in (counter_uniform(2, 1, torch.arange(1000), 64), counter_uniform(1, 3, torch.arange(1000), 64)):
        assert (u == other).float().mean() < 0.001
