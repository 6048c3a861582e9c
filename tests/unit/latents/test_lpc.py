"""The latent of LPC, part by part."""

import pytest
import torch

from lpc import latents
from lpc.cli import UserError
from lpc.latents.base import LatentStep
from lpc.latents.lpc import LPC, LPCSettings
from lpc.latents.parts.divergences import categorical_kl
from lpc.latents.parts.draws import prompt_uniform
from lpc.model.noise import counter_uniform


def test_gamma_moves_z_from_posterior_to_prior():
    """Without noise: at progress 0 z is the posterior's mean code, at progress 1 the prior's."""
    latent = LPC(LPCSettings(codes=6, gumbel_noise=False, code_scale=1.0), 8)
    h = [torch.randn(5, 8) for _ in range(3)]
    at = lambda progress: latent(*h, progress=progress).z  # noqa: E731
    torch.testing.assert_close(at(0.0), latent.posterior_logits(h[1], h[2]).softmax(-1) @ latent.codebook)
    torch.testing.assert_close(at(1.0), latent.infer(h[0]))
    torch.testing.assert_close(at(0.25), 0.75 * at(0.0) + 0.25 * at(1.0))


def test_gumbel_samples_are_distributed_as_the_prior():
    """The largest Gumbel-perturbed logit falls on code k with probability p_k (Gumbel-max), here within 5 sigma."""
    latent = LPC(
        LPCSettings(codes=4, gamma={"start": 1.0, "end": 1.0, "until": 1.0}, temperature=1e-3, code_scale=1.0), 8
    )
    with torch.no_grad():
        latent.codebook.zero_()
        latent.codebook[:, :4] = torch.eye(4)
        latent.prior[2].weight.zero_()
        latent.prior[2].bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    count = 20_000
    noise = counter_uniform(3, 0, torch.arange(count), 8).unflatten(1, (2, 4))
    h = torch.zeros(count, 8)
    frequencies = latent(h, h, h, progress=0.0, noise=noise).z[:, :4].mean(0)
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert ((frequencies - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_parameter_count_is_the_published_formula():
    """3d² + 3Kd + 2d + 2K for codebook, prior and posterior of width d."""
    d, k = 16, 6
    count = sum(p.numel() for p in LPC(LPCSettings(codes=k), d).parameters())
    assert count == 3 * d * d + 3 * k * d + 2 * d + 2 * k


def test_kl_of_the_step_is_that_of_posterior_and_prior():
    latent = LPC(LPCSettings(codes=6), 8)
    h = [torch.randn(4, 8) for _ in range(3)]
    step = latent(*h, progress=0.0, noise=torch.full((4, 2, 6), 0.3))
    expected = categorical_kl(latent.posterior_logits(h[1], h[2]), latent.prior_logits(h[0]))
    torch.testing.assert_close(step.kl, expected)


def test_the_kl_costs_its_weight_after_a_warmup_and_beyond_free_bits():
    """KL of 0.5 and 2 nats, λ = 0.1, one nat free, warm-up over half of training: by hand."""
    latent = LPC(LPCSettings(kl_weight=0.1, free_bits=1.0, kl_warmup=0.5), 4)
    step = LatentStep(z=torch.zeros(2, 4), kl=torch.tensor([0.5, 2.0]))
    for progress, weight in ((0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (1.0, 0.1)):
        torch.testing.assert_close(latent.cost(step, progress), torch.tensor([0.0, weight]))
    torch.testing.assert_close(LPC(LPCSettings(kl_weight=0.1), 4).cost(step, 0.0), torch.tensor([0.05, 0.2]))


def test_gamma_reaches_its_end_at_until():
    latent = LPC(LPCSettings(codes=2, gamma={"start": 0.2, "end": 0.8, "until": 0.4}), 4)
    assert [latent.gamma(p) for p in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0.2, 0.5, 0.8, 0.8, 0.8])


def test_straight_through_mixes_two_single_codes():
    """z is γ times one code plus 1 − γ times another, and logits of both networks get a gradient."""
    latent = LPC(LPCSettings(codes=5, straight_through=True, code_scale=1.0), 8)
    h = [torch.randn(6, 8) for _ in range(3)]
    noise = counter_uniform(0, 0, torch.arange(6), 10).unflatten(1, (2, 5))
    step = latent(*h, progress=0.25, noise=noise)
    gumbel = -(-noise.log()).log()
    codes = [(step.prior_logits + gumbel[:, 0]).argmax(-1), (step.posterior_logits + gumbel[:, 1]).argmax(-1)]
    torch.testing.assert_close(step.z, 0.25 * latent.codebook[codes[0]] + 0.75 * latent.codebook[codes[1]])
    step.z.square().sum().backward()
    for network in (latent.prior, latent.posterior):
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_clusters_need_standardised_features():
    with pytest.raises(UserError, match="kmeans needs standardize: true"):
        latents.parse({"codebook_init": "kmeans"})


@pytest.mark.parametrize("inference", ["mode", "sample"])
def test_inference_picks_single_codes(inference):
    """`mode` the strongest one for every prompt; `sample` code k with probability p_k, within 5 sigma."""
    latent = LPC(LPCSettings(codes=3, inference=inference, code_scale=1.0), 8)
    p = torch.tensor([0.2, 0.5, 0.3])
    with torch.no_grad():
        latent.prior[2].bias.copy_(p.log())
        latent.prior[2].weight.zero_()
    count = 4000
    uniform = prompt_uniform(0, [[i] for i in range(count)], latent.draw_size, torch.device("cpu"))
    z = latent.infer(torch.zeros(count, 8), uniform if inference == "sample" else None)
    codes = torch.cdist(z, latent.codebook).argmin(-1)
    torch.testing.assert_close(z, latent.codebook[codes])
    if inference == "mode":
        assert set(codes.tolist()) == {1}
    else:
        frequencies = torch.bincount(codes, minlength=3) / count
        assert ((frequencies - p).abs() < 5 * (p * (1 - p) / count).sqrt()).all()


def test_inference_by_gumbel_softmax_is_what_the_last_step_takes_from_the_prior():
    """Temperature at its end, and the noise of the prompt; γ = 1, so that training's z is the prior's."""
    settings = {"codes": 3, "code_scale": 1.0, "temperature": 2.0, "temperature_end": 0.5, "inference": "gumbel"}
    latent, h = LPC(LPCSettings(**settings), 8), torch.randn(7, 8)
    uniform = prompt_uniform(0, [[i] for i in range(7)], latent.draw_size, torch.device("cpu"))
    noise = torch.stack([uniform, torch.full_like(uniform, 0.5)], 1)
    torch.testing.assert_close(latent.infer(h, uniform), latent(h, h, h, progress=1.0, noise=noise).z)
    mean = latent.with_inference(inference="mean").infer(h)
    assert (latent.infer(h, uniform) - mean).abs().max() > 0.1 and latent.settings.inference == "gumbel"


def test_codes_have_a_learning_rate_of_their_own():
    latent = LPC(LPCSettings(codes=3, codebook_learning_rate=0.5), 4)
    networks, codebook = latent.parameter_groups(1e-6)
    assert networks[1] == 1e-4 and codebook == (["codebook"], 0.5)
    (_, rate), (_, own) = LPC(LPCSettings(codes=3, learning_rate=None), 4).parameter_groups(1e-6)
    assert rate == own == 1e-6


def test_schedules_are_those_of_the_step():
    latent = LPC(LPCSettings(codes=3, temperature=2.0, temperature_end=0.5), 4)
    assert latent.schedules(0.5) == pytest.approx({"gamma": 0.5, "temperature": 1.0})
