"""A latent that starts from clusters: codes, prior, and what it must leave alone."""

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from lpc import latents
from lpc.cli import UserError
from lpc.latents.parts.clusters import start_from_clusters


def states(clusters: int = 5, features: int = 16, count: int = 300, seed: int = 0):
    """Points around `clusters` centres on top of a large constant, as hidden states are; and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(clusters, features, generator=generator)
    label = torch.arange(count) % clusters
    return 50 + centres[label] + 0.3 * torch.randn(count, features, generator=generator), label


def latent_of(h, seed: int = 0, **options):
    config = {"kind": "lpc", "codes": 5, "standardize": True, "codebook_init": "kmeans", "code_scale": 0.02} | options
    latent = latents.build(latents.parse(config), h.shape[1], seed=seed)
    latent.prompt_standardizer.mean.copy_(h.mean(0))
    latent.prompt_standardizer.std.copy_(h.std(0))
    start_from_clusters(latent, h, seed)
    return latent


@pytest.mark.parametrize("width", [None, 8])
def test_codes_are_centroids_and_the_prior_names_the_nearest(width):
    """Five well separated clusters and a width of at least 2 · (5 − 1): the codes are their centres up to one factor,
    and the prior's largest logit is that of the own cluster, for every point."""
    h, label = states()
    latent = latent_of(h, width=width, logit_scale=2.5)
    with torch.no_grad():
        logits = latent.prior_logits(h)
        code = logits.argmax(-1)
    assert normalized_mutual_info_score(label, code) == pytest.approx(1)
    centred = logits - logits.mean(-1, keepdim=True)
    assert centred.square().mean().sqrt().item() == pytest.approx(2.5, rel=1e-4)
    assert latent.codebook.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)
    centres = torch.stack([h[code == k].mean(0) - h.mean(0) for k in range(5)])
    ratio = latent.codebook.detach() / centres
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-2, atol=0)


def test_logits_order_all_centroids_by_distance():
    """Not the nearest alone: differences of logits are differences of half squared distances, up to one factor."""
    h, _ = states()
    latent = latent_of(h, width=40)
    with torch.no_grad():
        x, logits = latent.prompt_standardizer(h), latent.prior_logits(h)
    centroids = torch.stack([x[logits.argmax(-1) == k].mean(0) for k in range(5)])
    expected = -(torch.cdist(x, centroids) ** 2)
    expected, logits = (v - v.mean(-1, keepdim=True) for v in (expected, logits))
    torch.testing.assert_close(logits, expected * (logits.std() / expected.std()), rtol=1e-3, atol=1e-3)


def test_a_narrow_prior_keeps_the_directions_of_most_variance():
    """Two dimensions of four: most points are still told apart, and logits still have their scale."""
    h, label = states()
    latent = latent_of(h, width=5)
    with torch.no_grad():
        logits = latent.prior_logits(h)
    assert normalized_mutual_info_score(label, logits.argmax(-1)) > 0.7
    assert (logits - logits.mean(-1, keepdim=True)).square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)


def test_same_seed_same_bytes_and_no_global_random_state():
    h, _ = states(clusters=9)  # more clusters than codes: several solutions
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(0)
    np.random.seed(0)
    first, again = latent_of(h, seed=3), latent_of(h, seed=3)
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    plain = latents.build(latents.parse({"kind": "lpc", "codes": 5}), 16, seed=3)
    for a, b in zip(first.posterior.parameters(), plain.posterior.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_parameter_of_the_prior_learns():
    h, _ = states()
    latent = latent_of(h, width=20)
    loss = latent.prior_logits(h).softmax(-1)[:, 0].sum() + latent.infer(h).square().sum()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in latent.prior.parameters())


def test_fewer_prompts_than_codes():
    h, _ = states()
    with pytest.raises(UserError, match=r"latent\.codes: 5 clusters of 4 different training prompts"):
        latent_of(h[:4].repeat(3, 1))
