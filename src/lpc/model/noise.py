"""Random numbers that are a pure function of what they belong to."""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def counter_uniform(seed: int, step: int, indices: Tensor, count: int) -> Tensor:
    """Return float32 numbers [len(indices), count], uniform in the open interval (0, 1).

    A function of (seed, step, index, position) alone: the same on every device, for every number of processes and
    every batch composition, and nothing to save in a checkpoint. `indices` int64 [B] are row numbers of the data set.
    """
    state = torch.tensor([seed, step], dtype=torch.int64, device=indices.device)
    state = _mix(_mix(state[0] + _GOLDEN) + state[1] + _GOLDEN)
    rows = _mix(state + indices + _GOLDEN)
    bits = _mix(rows[:, None] + torch.arange(1, count + 1, device=indices.device) * _GOLDEN)
    # 23 bits and a half: the largest value that float32 holds exactly below 1.
    return (_shift(bits, 41).float() + 0.5) / 2**23
