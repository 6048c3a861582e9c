"""The order in which a training sees its pairs."""

from collections.abc import Callable

import torch


class EpochSampler(torch.utils.data.Sampler):
    """Row positions of one epoch in an order that depends on the seed and the epoch alone.

    Each epoch has whole global batches only: up to `batch_size` − 1 pairs, others each time, wait for the next epoch.
    Then every step weighs every pair alike, on any number of devices.
    """

    def __init__(self, size: int, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.size, self.seed, self.epoch = size, seed, epoch
        self.length = size // batch_size * batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        return iter(torch.randperm(self.size, generator=generator)[: self.length].tolist())
