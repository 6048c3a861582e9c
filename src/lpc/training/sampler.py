"""The order in which a training sees its pairs."""

from collections.abc import Callable

import numpy as np
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
        return iter(self.order(generator)[: self.length].tolist())

    def order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(self.size, generator=generator)


class GroupSampler(EpochSampler):
    """Chunks of `group_size` neighbours of one group, in random order.

    groups [n]: the group of each pair. Each epoch cuts a group's pairs into other chunks; those that fill none, others
    each time, wait for the next epoch. `batch_size` must be a multiple of `group_size`.
    """

    def __init__(self, groups: np.ndarray, group_size: int, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.groups, self.group_size = torch.from_numpy(groups).long(), group_size
        _, numbers, self.sizes = self.groups.unique(return_inverse=True, return_counts=True)
        self.groups = numbers
        super().__init__(int((self.sizes // group_size).sum()) * group_size, batch_size, seed, epoch)

    def order(self, generator: torch.Generator) -> torch.Tensor:
        shuffled = torch.randperm(len(self.groups), generator=generator)
        # Stable: groups one after the other, each in the order of the permutation.
        shuffled = shuffled[self.groups[shuffled].argsort(stable=True)]
        rank = torch.arange(len(shuffled)) - (self.sizes.cumsum(0) - self.sizes).repeat_interleave(self.sizes)
        whole = (self.sizes // self.group_size * self.group_size).repeat_interleave(self.sizes)
        chunks = shuffled[rank < whole].view(-1, self.group_size)
        return chunks[torch.randperm(len(chunks), generator=generator)].flatten()
