"""The whole latent training step against a naive float64 version written from the equations."""

import pytest
import torch
import torch.nn.functional as F
from tiny import in_float64, make_backbone

from lpc import latents, objectives
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.latents.lpc import LPC, LPCSettings
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
        share = progress / config.gamma.until
        gamma = config.gamma.start * (1 - share) + config.gamma.end * share
        if share > 1:
            gamma = config.gamma.end
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
    config = LPCSettings(codes=5, code_scale=0.3, kl_weight=0.7, **options)
    policy = LatentPolicy(in_float64(make_backbone()))
    policy.latent = latents.build(config, 32, seed=1).double()
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
            loss = (pair_losses + policy.latent.cost(step, progress)).mean()
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
    policy = LatentPolicy(make_backbone(), LPC(LPCSettings(codes=4, detach=True), 32))
    batch = collate(random_items(3))
    noise = torch.full((3, 2, 4), 0.5)
    _, _, step, _ = policy(progress=0.0, noise=noise, **{key: batch[key] for key in MODEL_INPUTS})
    step.kl.sum().backward()
    assert all(p.grad is None for p in policy.backbone.parameters())
    assert any(p.grad.abs().sum() > 0 for p in policy.latent.parameters() if p.grad is not None)
