"""A latent that starts from clusters of the base model's prompts, in place of random codes and a random prior."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from lpc.cli import UserError
from lpc.latents.codes import Codes

STARTS = 4
"""Starts of k-means, of which the best counts."""


@torch.no_grad()
def start_from_clusters(latent: Codes, h_x: Tensor, seed: int) -> None:
    """Set codes and prior of `latent` from k-means of the standardised h_x [n, d] of n training prompts, in place.

    Codes: the centroids as hidden states less their mean, all times one number that makes their root mean square
    `code_scale`. Prior: its largest logit is that of the nearest centroid, and the deviation of the logits from each
    prompt's mean has the root mean square `logit_scale`. Nearest among K centroids is a linear map of rank K − 1, and
    GELU(u) − GELU(−u) = u, so two hidden units carry one of its dimensions; an MLP of fewer than 2 (K − 1) hidden
    units has the best map of the rank that it can hold. The same seed gives the same latent; one thread, since the
    order of parallel sums would not. Stops where there are fewer different prompts than codes.
    """
    points = latent.prompt_standardizer(h_x).double()
    distinct, codes = len(np.unique(points.numpy(), axis=0)), latent.settings.codes
    if distinct < codes:
        raise UserError(
            f"latent.codes: {codes} clusters of {distinct} different training prompts; lower it, or set "
            "latent.codebook_init to normal"
        )
    with threadpool_limits(1):
        centroids = KMeans(codes, n_init=STARTS, random_state=seed).fit(points.numpy()).cluster_centers_
    centroids = torch.from_numpy(centroids)

    vectors = centroids * latent.prompt_standardizer.std
    latent.codebook.copy_(vectors * latent.settings.code_scale / vectors.square().mean().sqrt())

    # |x − c_k|² up to what all codes share: −2 (c_k − c̄)·x + |c_k|². Half of it, negated, is the logit.
    first, _, last = latent.prior
    left, sizes, right = torch.linalg.svd(centroids - centroids.mean(0), full_matrices=False)
    rank = min(codes - 1, first.out_features // 2, len(right))
    outer = left[:, :rank] * sizes[:rank]
    bias = -centroids.square().sum(-1) / 2
    logits = points @ right[:rank].T @ outer.T + bias
    scale = latent.settings.logit_scale / (logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()
    first.weight[: 2 * rank].copy_(torch.cat([right[:rank], -right[:rank]]))
    first.bias[: 2 * rank] = 0
    last.weight[:, : 2 * rank].copy_(scale * torch.cat([outer, -outer], -1))
    last.weight[:, 2 * rank :] = 0
    last.bias.copy_(scale * (bias - bias.mean()))
