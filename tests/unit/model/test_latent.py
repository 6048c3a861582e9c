"""The whole latent training step against a naive float64 version written from the equations, and its parts by hand."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import in_float64, make_backbone

from lpc import objectives
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.latents.parts.divergences import categorical_kl
from lpc.model.controls import KINDS, build_latent
from lpc.model.latent import Latent, LatentConfig, LatentStep, latent_cost
from lpc.model.noise import counter_uniform
from lpc.model.policy import LatentPolicy

OBJECTIVES = {
    "dpo": {"name": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "ipo": {"name": "ipo", "tau": 0.2, "reduction": "mean"},
    "simpo": {"name": "simpo", "beta": 2.0, "margin": 0.5},
}


def random_items(count: int, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    ids = lambda low, high: torch.randint(  # noqa: E731
        3, 384, (int(torch.randint(low, high, (1,), generator=generator)),), generator=generator
    ).numpy()
    items = []
    for index in range(count):
        item = {"index": index, "prompt": ids(2, 9), "chosen": ids(1, 12), "rejected": ids(1, 12)}
        item["reference"] = (-20 * torch.rand(2, generator=generator, dtype=torch.float64)).numpy()
        items.append(item)
    return items


def one_hot_with_gradient_of(weights):
    """The straight-through estimator: the value of a one-hot vector, the gradient of `weights`."""
    return torch.eye(len(weights), dtype=weights.dtype)[weights.argmax()] - weights.detach() + weights


def naive_step(policy, items, objective, config, noise, progress):
    """Mean loss of a batch, pair by pair, with full logits, from equations 7 to 13 and the departures of `config`."""
    model, latent = policy.backbone, policy.latent
    total, priors = 0.0, []
    kl_weight = config.kl_weight
    if progress < config.kl_warmup:
        kl_weight *= progress / config.kl_warmup
    for item, uniform in zip(items, noise, strict=True):
        sequences = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([*item["prompt"], *item[side]])[None]
            hidden = model.model(input_ids=ids).last_hidden_state[0]
            sequences.append((ids[0], hidden))
        start = len(item["prompt"])
        h_x, h_w, h_l = sequences[0][1][start - 1], sequences[0][1][-1], sequences[1][1][-1]
        if config.detach:
            h_x, h_w, h_l = h_x.detach(), h_w.detach(), h_l.detach()
        mean, std = latent.prompt_standardizer.mean, latent.prompt_standardizer.std
        prior = latent.prior[2](F.gelu(latent.prior[0]((h_x - mean) / std)))
        mean, std = latent.completion_standardizer.mean, latent.completion_standardizer.std
        both = torch.cat([(h_w - mean) / std, (h_l - mean) / std])
        posterior = latent.posterior[2](F.gelu(latent.posterior[0](both)))
        temperature = config.temperature
        if config.temperature_end is not None:
            temperature *= (config.temperature_end / config.temperature) ** progress
        gumbel = -(-uniform.log()).log() if config.gumbel_noise else torch.zeros(2, config.codes)
        p = ((prior + gumbel[0]) / temperature).softmax(-1)
        q = ((posterior + gumbel[1]) / temperature).softmax(-1)
        if config.straight_through:
            p, q = one_hot_with_gradient_of(p), one_hot_with_gradient_of(q)
        share = progress / config.gamma["until"]
        gamma = config.gamma["start"] * (1 - share) + config.gamma["end"] * share
        if share > 1:
            gamma = config.gamma["end"]
        z = sum((gamma * p[k] + (1 - gamma) * q[k]) * latent.codebook[k] for k in range(config.codes))
        logps = []
        for ids, hidden in sequences:
            log_softmax = ((hidden + z) @ model.lm_head.weight.T).log_softmax(-1)
            logps.append(sum(log_softmax[t - 1, ids[t]] for t in range(start, len(ids))))
        reference = torch.tensor(item["reference"])
        lengths = torch.tensor([len(item["chosen"]), len(item["rejected"])])
        if objective["name"] == "dpo":
            delta = objective["beta"] * ((logps[0] - reference[0]) - (logps[1] - reference[1]))
            smoothing = objective["label_smoothing"]
            loss = -(1 - smoothing) * torch.sigmoid(delta).log() - smoothing * torch.sigmoid(-delta).log()
        elif objective["name"] == "ipo":
            ratios = [(logps[i] - reference[i]) / lengths[i] for i in range(2)]
            loss = (ratios[0] - ratios[1] - 1 / (2 * objective["tau"])) ** 2
        else:
            delta = objective["beta"] * (logps[0] / lengths[0] - logps[1] / lengths[1]) - objective["margin"]
            loss = -torch.sigmoid(delta).log()
        kl = (posterior.softmax(-1) * (posterior.log_softmax(-1) - prior.log_softmax(-1))).sum()
        kl = kl - config.free_bits if kl > config.free_bits else 0
        total = total + loss + kl_weight * kl
        priors.append(prior.softmax(-1))
    mean = sum(priors) / len(priors)
    information = -(mean * mean.log()).sum() + sum((p * p.log()).sum() for p in priors) / len(priors)
    return total / len(items) - config.information_weight * information


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gumbel_noise": False, "gamma": {"start": 1.0, "end": 1.0, "until": 1.0}},
        {"temperature": 2.0, "temperature_end": 0.5, "gamma": {"start": 0.0, "end": 0.0, "until": 1.0}, "detach": True},
        {"standardize": True, "width": 5, "logit_scale": 3.0},
        {"straight_through": True, "information_weight": 0.4},
        {"kl_warmup": 0.5, "free_bits": 0.02, "gamma": {"start": 0.2, "end": 0.9, "until": 0.6}},
        {"kl_warmup": 0.1, "gamma": {"start": 0.2, "end": 0.9, "until": 0.1}},
    ],
)
def test_whole_step_equals_the_naive_one(name, options):
    """Loss and every gradient of one LPC step, float64, for all objectives."""
    config = LatentConfig(codes=5, init_std=0.3, kl_weight=0.7, **options)
    policy = LatentPolicy(in_float64(make_backbone()))
    policy.latent = build_latent(dataclasses.asdict(config), 32, seed=1).double()
    if config.standardize:
        generator = torch.Generator().manual_seed(9)
        for standardizer in (policy.latent.prompt_standardizer, policy.latent.completion_standardizer):
            standardizer.mean.copy_(torch.randn(32, generator=generator))
            standardizer.std.copy_(torch.rand(32, generator=generator) + 0.5)
    items, progress = random_items(6), 0.3
    noise = counter_uniform(0, 4, torch.arange(6), 10).double().unflatten(1, (2, 5))
    batch = collate(items)
    gradients, losses = [], []
    for fast in (True, False):
        policy.zero_grad()
        if fast:
            tensors = {key: batch[key] for key in MODEL_INPUTS}
            chosen, rejected, step, _ = policy(progress=progress, noise=noise, **tensors)
            reference = torch.stack([torch.from_numpy(item["reference"]) for item in items])
            exact = batch | {"reference_chosen_logps": reference[:, 0], "reference_rejected_logps": reference[:, 1]}
            pair_losses, _, _ = objectives.parse(OBJECTIVES[name]).evaluate(chosen, rejected, exact)
            loss = (pair_losses + latent_cost(config, step, progress)).mean()
            if config.free_bits:
                assert 0 < (step.kl < config.free_bits).sum() < len(items), "free_bits tells no pairs apart here"
        else:
            loss = naive_step(policy, items, OBJECTIVES[name], config, noise, progress)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    assert gradients[0].keys() == gradients[1].keys() == {n for n, _ in policy.named_parameters()}
    for key in gradients[0]:
        torch.testing.assert_close(gradients[0][key], gradients[1][key], rtol=1e-7, atol=1e-10, msg=key)


def test_detach_keeps_the_latent_out_of_the_backbone():
    """With `detach`, KL alone (γ, z unused) moves no backbone weight."""
    policy = LatentPolicy(make_backbone(), Latent(LatentConfig(codes=4, detach=True), 32))
    batch = collate(random_items(3))
    noise = torch.full((3, 2, 4), 0.5)
    _, _, step, _ = policy(progress=0.0, noise=noise, **{key: batch[key] for key in MODEL_INPUTS})
    step.kl.sum().backward()
    assert all(p.grad is None for p in policy.backbone.parameters())
    assert any(p.grad.abs().sum() > 0 for p in policy.latent.parameters() if p.grad is not None)


def test_gamma_moves_z_from_posterior_to_prior():
    """Without noise: at progress 0 z is the posterior's mean code, at progress 1 the prior's."""
    latent = Latent(LatentConfig(codes=6, gumbel_noise=False, init_std=1.0), 8)
    h = [torch.randn(5, 8) for _ in range(3)]
    at = lambda progress: latent(*h, progress=progress).z  # noqa: E731
    torch.testing.assert_close(at(0.0), latent.posterior_logits(h[1], h[2]).softmax(-1) @ latent.codebook)
    torch.testing.assert_close(at(1.0), latent.infer(h[0]))
    torch.testing.assert_close(at(0.25), 0.75 * at(0.0) + 0.25 * at(1.0))


def test_gumbel_samples_are_distributed_as_the_prior():
    """The largest Gumbel-perturbed logit falls on code k with probability p_k (Gumbel-max), here within 5 sigma."""
    latent = Latent(
        LatentConfig(codes=4, gamma={"start": 1.0, "end": 1.0, "until": 1.0}, temperature=1e-3, init_std=1.0), 8
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
    count = sum(p.numel() for p in Latent(LatentConfig(codes=k), d).parameters())
    assert count == 3 * d * d + 3 * k * d + 2 * d + 2 * k


@pytest.mark.parametrize("width", [None, 20])
def test_mlp_control_has_the_latents_size(width):
    """At least as many parameters, and fewer than one hidden unit (2d + 1) more."""
    config = LatentConfig(codes=10, width=width)
    latent, control = (sum(p.numel() for p in KINDS[kind](config, 24).parameters()) for kind in ("lpc", "mlp"))
    assert 0 <= control - latent < 2 * 24 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_small_and_trains(kind):
    """z is small at the start, every parameter gets a gradient, and inference depends on the prompt alone."""
    latent = KINDS[kind](LatentConfig(kind=kind, codes=5, gamma={"start": 0.5, "end": 0.5, "until": 1.0}), 16)
    h = [torch.randn(7, 16) for _ in range(3)]
    noise = (
        counter_uniform(0, 0, torch.arange(7), 2 * latent.noise_size).unflatten(1, (2, latent.noise_size or 1))
        if (latent.noise_size)
        else None
    )
    step = latent(*h, progress=0.5, noise=noise)
    assert step.z.shape == (7, 16) and step.kl.shape == (7,) and step.z.abs().max() < 0.2
    (step.z.pow(2).sum() + step.kl.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in latent.parameters())
    torch.testing.assert_close(latent.infer(h[0])[2:3], latent.infer(h[0][2:3]))


def test_build_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build_latent({"kind": "lpc", "codes": 4}, 8, seed=5)
    assert torch.equal(torch.rand(3), expected)
    second = build_latent({"kind": "lpc", "codes": 4}, 8, seed=5)
    other = build_latent({"kind": "lpc", "codes": 4}, 8, seed=6)
    assert torch.equal(first.codebook, second.codebook) and not torch.equal(first.codebook, other.codebook)


@pytest.mark.parametrize("inference", ["mode", "sample"])
def test_inference_picks_single_codes(inference):
    latent = Latent(LatentConfig(codes=3, inference=inference, init_std=1.0), 8)
    with torch.no_grad():
        latent.prior[2].bias.copy_(torch.tensor([0.0, 0.3, 0.0]))
        latent.prior[2].weight.zero_()
    z = latent.infer(torch.zeros(400, 8), torch.Generator().manual_seed(0))
    codes = torch.cdist(z, latent.codebook).argmin(-1)
    torch.testing.assert_close(z, latent.codebook[codes])
    if inference == "mode":
        assert set(codes.tolist()) == {1}
    else:
        again = latent.infer(torch.zeros(400, 8), torch.Generator().manual_seed(0))
        assert set(codes.tolist()) == {0, 1, 2} and torch.equal(z, again)


def test_counter_uniform_is_uniform_and_a_function_of_its_arguments():
    """Moments within 5 sigma; rows, steps and seeds differ; the same for any batch composition."""
    u = counter_uniform(1, 2, torch.arange(1000), 64)
    count = u.numel()
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(u.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    assert abs(torch.corrcoef(u[:, :2].T)[0, 1].item()) < 5 / math.sqrt(1000)
    assert abs(torch.corrcoef(u[:2])[0, 1].item()) < 5 / math.sqrt(64)
    assert len(u.unique()) > 0.99 * count
    assert torch.equal(u[torch.tensor([7, 3])], counter_uniform(1, 2, torch.tensor([7, 3]), 64))
    for other in (counter_uniform(2, 1, torch.arange(1000), 64), counter_uniform(1, 3, torch.arange(1000), 64)):
        assert (u == other).float().mean() < 0.001


def test_kl_of_the_step_is_that_of_posterior_and_prior():
    latent = Latent(LatentConfig(codes=6), 8)
    h = [torch.randn(4, 8) for _ in range(3)]
    step = latent(*h, progress=0.0, noise=torch.full((4, 2, 6), 0.3))
    expected = categorical_kl(latent.posterior_logits(h[1], h[2]), latent.prior_logits(h[0]))
    torch.testing.assert_close(step.kl, expected)


def test_the_kl_costs_its_weight_after_a_warmup_and_beyond_free_bits():
    """KL of 0.5 and 2 nats, λ = 0.1, one nat free, warm-up over half of training: by hand."""
    config = LatentConfig(kl_weight=0.1, free_bits=1.0, kl_warmup=0.5)
    step = LatentStep(z=torch.zeros(2, 4), kl=torch.tensor([0.5, 2.0]))
    for progress, weight in ((0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (1.0, 0.1)):
        torch.testing.assert_close(latent_cost(config, step, progress), torch.tensor([0.0, weight]))
    torch.testing.assert_close(latent_cost(LatentConfig(kl_weight=0.1), step, 0.0), torch.tensor([0.05, 0.2]))


def test_gamma_reaches_its_end_at_until():
    latent = Latent(LatentConfig(codes=2, gamma={"start": 0.2, "end": 0.8, "until": 0.4}), 4)
    assert [latent.gamma(p) for p in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0.2, 0.5, 0.8, 0.8, 0.8])


def test_straight_through_mixes_two_single_codes():
    """z is γ times one code plus 1 − γ times another, and logits of both networks get a gradient."""
    latent = Latent(LatentConfig(codes=5, straight_through=True, init_std=1.0), 8)
    h = [torch.randn(6, 8) for _ in range(3)]
    noise = counter_uniform(0, 0, torch.arange(6), 10).unflatten(1, (2, 5))
    step = latent(*h, progress=0.25, noise=noise)
    gumbel = -(-noise.log()).log()
    codes = [(step.prior_logits + gumbel[:, 0]).argmax(-1), (step.posterior_logits + gumbel[:, 1]).argmax(-1)]
    torch.testing.assert_close(step.z, 0.25 * latent.codebook[codes[0]] + 0.75 * latent.codebook[codes[1]])
    step.z.square().sum().backward()
    for network in (latent.prior, latent.posterior):
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())
