"""The base model's log-probabilities of each pair, and statistics of its hidden states."""

import numpy as np
import torch

from lpc.data.tokens import PairTokens
from lpc.model.policy import LatentPolicy
from lpc.scoring import encoded_batches

SAMPLE = 4096
"""Training pairs, at most, whose h_x is kept for a codebook that starts from clusters."""


class Moments:
    """Mean and standard deviation of feature vectors that arrive in batches, in float64."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, h: torch.Tensor) -> None:
        h = h.double().cpu()
        self.count += len(h)
        self.total = self.total + h.sum(0)
        self.squares = self.squares + (h * h).sum(0)

    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and deviation, float32 [d] each. A feature that never varies gets a standard deviation of 1: it
        stays at 0 when standardised."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp_min(0)
        std = variance.sqrt()
        return mean.float(), torch.where(std > 1e-6 * mean.abs().clamp_min(1), std, 1.0).float()


def reference_logps(
    policy: LatentPolicy, tokens: PairTokens, train: np.ndarray, *, batch_size: int, precision: str
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the sums of log-probabilities of the base model, float64 [n, 2] (chosen, rejected), and feature
    statistics.

    The statistics are over the pairs where `train` [n] is true: mean and std [d] of h_x ("prompt.mean", "prompt.std")
    and of both h_{x,y} ("completion.…"), for latents that standardise their inputs; and h_x itself of up to `SAMPLE`
    evenly spaced ones ("prompt.sample" [≤ SAMPLE, d]), for codes that start from clusters. All come from the same
    backbone pass.
    """
    logps = np.empty((len(tokens), 2))
    rows = np.flatnonzero(train)
    count = min(SAMPLE, len(rows))
    sample, row_in_sample = torch.empty(count, policy.head.weight.shape[1]), np.full(len(tokens), -1)
    row_in_sample[rows[np.arange(count) * len(rows) // max(1, count)]] = np.arange(count)
    prompt, completion = Moments(), Moments()
    for positions, _, encoded in encoded_batches(policy, tokens, batch_size, precision, "reference"):
        chosen, rejected = policy.pair_logps(encoded, None)
        logps[positions] = torch.stack([chosen, rejected], -1).double().cpu().numpy()
        inside = torch.from_numpy(train[positions]).to(encoded.h_x.device)
        prompt.add(encoded.h_x[inside])
        kept = row_in_sample[positions] >= 0
        sample[row_in_sample[positions[kept]]] = encoded.h_x.float().cpu()[kept]
        completion.add(encoded.h_chosen[inside])
        completion.add(encoded.h_rejected[inside])
    statistics = {}
    if train.any():
        for name, moments in (("prompt", prompt), ("completion", completion)):
            statistics[f"{name}.mean"], statistics[f"{name}.std"] = moments.mean_std()
        statistics["prompt.sample"] = sample
    return logps, statistics
