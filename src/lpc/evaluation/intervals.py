"""Intervals and tests for accuracies over preference pairs and for means over seeds.

Pairs that share a prompt are not independent, so whatever resamples or estimates a variance does it by prompt
(`clusters`). An outcome is 1 (right), 0 (wrong) or 1/2 (a tie). All functions are pure and vectorised.
"""

from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats would take a second longer to import

from lpc.cli import UserError

# Draws handled at once by the bootstrap: bounds its memory at this many rows of cluster counts.
_CHUNK = 500


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return value < self.low or value > self.high


def outcomes(chosen_reward, rejected_reward) -> np.ndarray:
    """Return 1 where the chosen completion has the higher reward, 1/2 at a tie, 0 elsewhere. Shapes [N], [N] -> [N].

    Raises UserError for a reward that is not finite.
    """
    chosen, rejected = np.asarray(chosen_reward, np.float64), np.asarray(rejected_reward, np.float64)
    if wrong := int((~(np.isfinite(chosen) & np.isfinite(rejected))).sum()):
        raise UserError(
            f"{wrong} of {chosen.size} pairs have a reward that is not finite; train the model with a lower "
            "learning rate, or score it with `precision: float32`"
        )
    return (chosen > rejected) + 0.5 * (chosen == rejected)


def cluster_sums(values: np.ndarray, clusters) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and number of `values` [N] in each distinct cluster, [C] and [C]."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index)


def accuracy_interval(outcome, clusters, *, confidence: float = 0.95) -> Interval:
    """Return the mean of `outcome` [N] with a Wilson score interval at the sample size that the clusters leave.

    The design effect is the cluster-robust variance of the mean over the variance that ignores clusters (Kish 1965);
    it is not taken below 1. With one pair a prompt this is the ordinary Wilson interval (Wilson 1927).
    """
    outcome = np.asarray(outcome, np.float64)
    n = len(outcome)
    if n == 0:
        raise ValueError("no outcomes")
    mean = outcome.mean()
    residuals, sizes = cluster_sums(outcome - mean, clusters)
    count = len(sizes)
    independent = np.sum((outcome - mean) ** 2) / n**2 * n / max(n - 1, 1)
    clustered = np.sum(residuals**2) / n**2 * count / max(count - 1, 1)
    # All right or all wrong has no variance to compare: count each prompt once.
    effect = max(clustered / independent, 1.0) if independent > 0 else n / count
    effective = n / effect
    z2 = special.ndtri(0.5 + confidence / 2) ** 2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = np.sqrt(z2 * (mean * (1 - mean) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return Interval(float(mean), float(max(centre - half, 0.0)), float(min(centre + half, 1.0)))


def paired_bootstrap(
    difference, clusters, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of the paired `difference` [N] and its percentile bootstrap interval, whole clusters resampled.

    Each resample draws as many clusters as there are, with replacement, and takes the mean over their pairs (a ratio
    of sums, since clusters differ in size). Clusters are ordered by name, so the interval does not depend on the
    order of the pairs.
    """
    difference = np.asarray(difference, np.float64)
    if len(difference) == 0:
        raise ValueError("no pairs to compare")
    sums, sizes = cluster_sums(difference, clusters)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        drawn = generator.integers(len(sums), size=(min(_CHUNK, resamples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def mcnemar(difference) -> tuple[int, int, float]:
    """Return the wins, losses and the two-sided p-value of the exact McNemar test on the paired `difference` [N] of
    outcomes.

    A win is a pair with a positive difference; pairs without difference are not counted. The test takes pairs as
    independent, so with many pairs a prompt it is too sure: the clustered bootstrap stands beside it.
    """
    difference = np.asarray(difference)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    # With equal chances both tails are alike; where they meet, their sum counts the middle twice.
    p = min(2 * special.bdtr(min(wins, losses), wins + losses, 0.5), 1.0)
    return wins, losses, float(p)


def t_interval(values, *, confidence: float = 0.95) -> Interval | None:
    """Return the mean of `values` [S] (one a seed) and its Student t interval; None for fewer than two, which show no
    spread."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = special.stdtrit(len(values) - 1, 0.5 + confidence / 2) * error
    return Interval(float(mean), float(mean - half), float(mean + half))
