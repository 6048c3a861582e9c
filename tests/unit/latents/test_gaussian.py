"""The Gaussian control: its samples have the means and deviations of its networks."""

import math

import torch

from lpc.latents.gaussian import Gaussian, GaussianSettings
from lpc.latents.parts.divergences import gaussian_kl
from lpc.latents.parts.draws import prompt_uniform
from lpc.model.noise import counter_uniform

COUNT, FEATURES = 20_000, 4
MEAN = torch.tensor([0.0, 1.0, -2.0, 3.0])
STD = torch.tensor([0.5, 1.0, 2.0, 0.1])


def latent_of(**settings) -> Gaussian:
    """Prior of MEAN and STD for every prompt, posterior of −MEAN and 2 STD, in units of code_scale = 0.1."""
    latent = Gaussian(GaussianSettings(code_scale=0.1, **settings), FEATURES)
    with torch.no_grad():
        for network, mean, std in ((latent.prior, MEAN, STD), (latent.posterior, -MEAN, 2 * STD)):
            network[2].weight.zero_()
            network[2].bias.copy_(torch.cat([mean, std.log()]))
    return latent


def has_moments(z, mean, std):
    """Within 5 sigma, of the mean of COUNT numbers and of their variance."""
    assert ((z.mean(0) - mean).abs() < 5 * std / COUNT**0.5).all()
    assert ((z.var(0) / std**2 - 1).abs() < 5 * (2 / COUNT) ** 0.5).all()


def test_training_samples_prior_and_posterior():
    noise = counter_uniform(0, 0, torch.arange(COUNT), 2 * FEATURES).unflatten(1, (2, FEATURES))
    h = torch.zeros(COUNT, FEATURES)
    for gamma, mean, std in ((1.0, MEAN, STD), (0.0, -MEAN, 2 * STD)):
        latent = latent_of(gamma={"start": gamma, "end": gamma, "until": 1.0})
        has_moments(latent(h, h, h, progress=0.5, noise=noise).z.detach(), 0.1 * mean, 0.1 * std)


def test_kl_is_of_posterior_to_prior():
    h = torch.zeros(2, FEATURES)
    step = latent_of(gumbel_noise=False)(h, h, h, progress=0.0)
    expected = gaussian_kl(-MEAN, (2 * STD).log(), MEAN, STD.log())
    torch.testing.assert_close(step.kl, expected.expand(2))


def test_inference_is_the_priors_mean_or_a_sample():
    h = torch.zeros(COUNT, FEATURES)
    torch.testing.assert_close(latent_of().infer(h), (0.1 * MEAN).expand(COUNT, -1))
    latent = latent_of(inference="sample")
    uniform = prompt_uniform(0, [[i] for i in range(COUNT)], latent.draw_size, h.device)
    has_moments(latent.infer(h, uniform).detach(), 0.1 * MEAN, 0.1 * STD)


def test_posterior_z_is_the_posteriors_mean():
    h = torch.zeros(2, FEATURES)
    torch.testing.assert_close(latent_of().posterior_z(h, h), (-0.1 * MEAN).expand(2, -1))


def test_product_of_posteriors_is_that_of_densities():
    """On a grid: the product of two normal densities, normalised, is the normal density of `combine`."""
    outputs = torch.tensor([[0.3, math.log(0.5)], [-1.0, math.log(2.0)]])
    mean, log_std = latent_of().combine(outputs)
    grid = torch.linspace(-4, 4, 2001)
    density = torch.stack([torch.distributions.Normal(m, s.exp()).log_prob(grid) for m, s in outputs]).sum(0).softmax(0)
    torch.testing.assert_close((density * grid).sum(), mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((density * (grid - mean) ** 2).sum().sqrt(), log_std.exp(), atol=1e-4, rtol=1e-4)
    same = latent_of().combine(outputs[:1])
    torch.testing.assert_close(same, outputs[0])
