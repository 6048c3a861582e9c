"""A device's part of a global batch in pieces of about as many tokens."""

import numpy as np

from lpc.data.tokens import collate


class MicroBatches:
    """Collate pairs into micro-batches of at most `budget` tokens, those of the longest pairs first.

    Each `together` neighbours are of one group and stay neighbours. What exceeds the budget alone is a micro-batch of
    its own.
    """

    def __init__(self, budget: int, together: int = 1):
        self.budget, self.together = budget, together

    def __call__(self, items: list[dict]) -> list[dict]:
        lengths = np.array([sum(len(item[part]) for part in ("prompt", "chosen", "rejected")) for item in items])
        lengths = lengths.reshape(-1, self.together).sum(1)
        micro_batches, room = [], 0
        for chunk in np.argsort(-lengths, kind="stable"):
            if lengths[chunk] > room:
                micro_batches.append([])
                room = self.budget
            micro_batches[-1] += items[chunk * self.together : (chunk + 1) * self.together]
            room -= lengths[chunk]
        return [collate(pairs) for pairs in micro_batches]
