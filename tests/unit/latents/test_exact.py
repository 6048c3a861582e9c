"""The exact objective (equation 6) against a naive float64 version written from the equations, and its mixture."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_step import random_items
from tiny import in_float64, make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.evaluation.diagnostics import latent_diagnostics
from lpc.evaluation.preference import another_prompt, pair_latents, score_pairs
from lpc.latents.exact import ExactSettings
from lpc.latents.parts.mixture import marginal_loss, mixture_rewards
from lpc.model.policy import LatentPolicy

OBJECTIVES = {
    "dpo": {"name": "dpo", "beta": 0.3},
    "dpo smoothed": {"name": "dpo", "beta": 0.3, "label_smoothing": 0.1, "nll_weight": 0.2},
    "dpo mean": {"name": "dpo", "beta": 2.0, "reduction": "mean"},
    "ipo": {"name": "ipo", "tau": 0.2, "reduction": "mean"},
    "simpo": {"name": "simpo", "beta": 2.0, "margin": 0.5, "nll_weight": 0.3},
    "slic": {"name": "slic", "beta": 0.1},
    "robust dpo": {"name": "robust_dpo", "beta": 0.3, "label_smoothing": 0.2},
    "cpo": {"name": "cpo", "beta": 0.3, "nll_weight": 1.0},
    "orpo": {"name": "orpo", "weight": 0.5, "nll_weight": 1.0},
}


OPTIONS = [
    {},
    {"detach": True, "code_scale": 2.0},
    {"standardize": True, "width": 5},
    {"group_size": 3, "code_scale": 2.0},
    {"group_size": 2, "prior": "shared"},
    {"prior": "shared"},
    {"kind": "heads", "rank": 3, "group_size": 2, "prior": "shared"},
]


def make_policy(code_scale: float = 0.3, codes: int = 5, dtype=torch.float64, **settings) -> LatentPolicy:
    backbone = make_backbone()
    policy = LatentPolicy(in_float64(backbone) if dtype == torch.float64 else backbone)
    settings = latents.parse({"kind": "exact", "codes": codes, "code_scale": code_scale} | settings)
    policy.latent = latents.build(settings, 32, seed=1).to(dtype)
    if settings.kind == "heads":  # whose low-rank part starts at 0
        torch.nn.init.normal_(policy.latent.up, std=0.2, generator=torch.Generator().manual_seed(2))
    return policy


def naive_codes(latent):
    """What each code adds to a hidden state, as functions of it."""
    if latent.settings.kind == "exact":
        return [lambda hidden, code=code: code for code in latent.codebook]
    scaled = lambda hidden: hidden / hidden.square().mean(-1, keepdim=True).sqrt()  # noqa: E731
    return [
        lambda hidden, e=e, up=up, down=down: e + torch.einsum("tr,rd->td", scaled(hidden) @ down.T, up)
        for e, up, down in zip(latent.codebook, latent.up, latent.down, strict=True)
    ]


def naive_loss_under(code, sequences, item, model, objective):
    """Loss of one pair under one code, with full logits, from equations 5, 12 and 13."""
    start, logps = len(item["prompt"]), []
    for ids, hidden in sequences:
        log_softmax = ((hidden + code(hidden)) @ model.lm_head.weight.T).log_softmax(-1)
        logps.append(sum(log_softmax[t - 1, ids[t]] for t in range(start, len(ids))))
    reference = torch.tensor(item["reference"])
    lengths = [len(item["chosen"]), len(item["rejected"])]
    if objective["name"] in ("simpo", "cpo", "orpo"):
        reference = torch.zeros(2)
    if objective.get("reduction") == "mean" or objective["name"] in ("simpo", "orpo"):
        terms = [(logps[i] - reference[i]) / lengths[i] for i in range(2)]
    else:
        terms = [logps[i] - reference[i] for i in range(2)]
    difference = terms[0] - terms[1]
    if objective["name"] == "dpo":
        smoothing, delta = objective.get("label_smoothing", 0.0), objective["beta"] * difference
        loss = -(1 - smoothing) * torch.sigmoid(delta).log() - smoothing * torch.sigmoid(-delta).log()
    elif objective["name"] == "ipo":
        loss = (difference - 1 / (2 * objective["tau"])) ** 2
    elif objective["name"] == "simpo":
        loss = -torch.sigmoid(objective["beta"] * difference - objective["margin"]).log()
    elif objective["name"] == "robust_dpo":
        smoothing, delta = objective["label_smoothing"], objective["beta"] * difference
        loss = -(1 - smoothing) * torch.sigmoid(delta).log() + smoothing * torch.sigmoid(-delta).log()
        loss = loss / (1 - 2 * smoothing)
    elif objective["name"] == "cpo":
        loss = -torch.sigmoid(objective["beta"] * difference).log()
    elif objective["name"] == "orpo":
        odds = [term.exp() / (1 - term.exp()) for term in terms]
        loss = -objective["weight"] * torch.sigmoid((odds[0] / odds[1]).log()).log()
    else:
        loss = torch.relu(1 - objective["beta"] * difference)
    return loss + objective.get("nll_weight", 0.0) * -logps[0] / lengths[0]


def naive_prior(latent, h_x):
    if latent.settings.prior == "shared":
        return latent.shared_logits.softmax(-1)
    standardised = (h_x - latent.prompt_standardizer.mean) / latent.prompt_standardizer.std
    return latent.prior[2](F.gelu(latent.prior[0](standardised))).softmax(-1)


def naive_step(policy, items, objective):
    """−log Σ_k p_k Π_i exp(−ℓ_ik) of each group over the number of pairs, pair by pair and code by code."""
    model, latent, total, size = policy.backbone, policy.latent, 0.0, policy.latent.settings.group_size
    priors, likelihoods = [], []
    for item in items:
        sequences = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([*item["prompt"], *item[side]])[None]
            sequences.append((ids[0], model.model(input_ids=ids).last_hidden_state[0]))
        h_x = sequences[0][1][len(item["prompt"]) - 1]
        if latent.settings.detach:
            h_x = h_x.detach()
        priors.append(naive_prior(latent, h_x))
        losses = [naive_loss_under(code, sequences, item, model, objective) for code in naive_codes(latent)]
        likelihoods.append(torch.stack(losses).neg().exp())
    for start in range(0, len(items), size):
        mean = torch.stack([p.log() for p in priors[start : start + size]]).mean(0).exp()
        prior = mean / mean.sum()
        product = math.prod(likelihoods[start : start + size])
        total = total - sum(p * product[k] for k, p in enumerate(prior)).log()
    return total / len(items)


def fast_step(policy, items, objective):
    batch = collate(items)
    chosen, rejected, step, _ = policy(progress=0.3, **{key: batch[key] for key in MODEL_INPUTS})
    reference = torch.stack([torch.from_numpy(item["reference"]) for item in items])
    batch |= {"reference_chosen_logps": reference[:, 0], "reference_rejected_logps": reference[:, 1]}
    objective = objectives.parse(objective)
    losses, *rewards = objective.evaluate(chosen, rejected, batch)
    losses, *_ = policy.latent.marginalise(step, losses + objective.regularization(chosen, batch), *rewards)
    return losses.mean(), step


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("options", OPTIONS)
def test_whole_step_equals_the_naive_one(name, options):
    """Loss and every gradient of one exact step, float64, for all objectives."""
    policy = make_policy(**({} if options.get("prior") else {"logit_scale": 3.0}) | options)
    if options.get("prior"):
        with torch.no_grad():
            policy.latent.shared_logits.copy_(torch.randn(5, generator=torch.Generator().manual_seed(9)))
    if policy.latent.settings.standardize:
        generator = torch.Generator().manual_seed(9)
        policy.latent.prompt_standardizer.mean.copy_(torch.randn(32, generator=generator))
        policy.latent.prompt_standardizer.std.copy_(torch.rand(32, generator=generator) + 0.5)
    items = random_items(6)
    results = []
    for step in (
        lambda: fast_step(policy, items, OBJECTIVES[name])[0],
        lambda: naive_step(policy, items, OBJECTIVES[name]),
    ):
        policy.zero_grad()
        loss = step()
        loss.backward()
        results.append((loss.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}))
    (loss, gradients), (expected_loss, expected) = results
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == expected.keys() == {n for n, _ in policy.named_parameters()}
    if options.get("prior"):
        assert not any(key.startswith("latent.prior") for key in gradients)
    for key in gradients:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-7, atol=1e-10, msg=key)


def test_the_step_knows_the_posterior_by_bayes_rule():
    """Two codes with prior 1/4 and 3/4 and likelihoods 0.9 and 0.1: posterior 0.75 and 0.25, by hand."""
    latent = latents.build(ExactSettings(codes=2), 4, seed=0)
    step = latent(*[torch.zeros(1, 4)] * 3, progress=0.0)
    step.prior_logits = torch.tensor([[0.25, 0.75]]).log()
    losses, *_ = latent.marginalise(step, -torch.tensor([[0.9, 0.1]]).log(), torch.zeros(1, 2), torch.zeros(1, 2))
    torch.testing.assert_close(losses.exp(), torch.tensor([1 / 0.3]))
    torch.testing.assert_close(step.posterior_logits.softmax(-1), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(step.kl, torch.tensor([0.75 * np.log(3) + 0.25 * np.log(1 / 3)], dtype=torch.float32))


def test_the_step_s_rewards_are_those_of_the_prior():
    """Prior 1/4 and 3/4, probabilities .9 and .5 of the chosen completion: .25 · .9 + .75 · .5 = .6, odds 3 : 2. The
    posterior knows the label, so its odds would be better."""
    latent = latents.build(ExactSettings(codes=2), 4, seed=0)
    step = latent(*[torch.zeros(1, 4)] * 3, progress=0.0)
    step.prior_logits = torch.tensor([[0.25, 0.75]]).log()
    chosen, rejected = torch.tensor([[math.log(9) + 1, 1.0]]), torch.tensor([[1.0, 1.0]])
    _, chosen, rejected = latent.marginalise(step, -torch.tensor([[0.9, 0.5]]).log(), chosen, rejected)
    torch.testing.assert_close(chosen - rejected, torch.tensor([1.5]).log())
    torch.testing.assert_close(chosen + rejected, torch.tensor([0.25 * math.log(9) + 2]))


def test_a_group_of_one_is_today_s_loss_bit_for_bit():
    """Loss and gradients in float32 against logsumexp of one pair, without a group in sight."""
    generator = torch.Generator().manual_seed(0)
    latent = latents.build(ExactSettings(codes=5, logit_scale=4.0), 8, seed=0)
    h_x, losses = torch.randn(7, 8, generator=generator), torch.rand(7, 5, generator=generator).mul(9)
    results = []
    for grouped in (True, False):
        h, under = h_x.clone().requires_grad_(), losses.clone().requires_grad_()
        latent.zero_grad()
        if grouped:
            loss, *_ = latent.marginalise(latent(h, h, h, progress=0.0), under, under, under)
        else:
            loss = -(latent.prior_logits(h).log_softmax(-1) - under).logsumexp(-1)
        loss.mul(torch.arange(7)).sum().backward()
        results.append([loss.detach(), h.grad, under.grad, *(p.grad for p in latent.prior.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_group_shares_posterior_and_loss_and_knows_its_person():
    """Two pairs with likelihoods .9/.2 and .8/.1 under two equal codes: product .72 against .02, by hand."""
    latent = latents.build(ExactSettings(codes=2, group_size=2, prior="shared"), 4, seed=0)
    step = latent(*[torch.zeros(4, 4)] * 3, progress=0.0)
    losses = -torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.5, 0.5], [0.5, 0.5]]).log()
    found, *_ = latent.marginalise(step, losses, torch.zeros(4, 2), torch.zeros(4, 2))
    torch.testing.assert_close(found, -torch.tensor([0.37, 0.37, 0.25, 0.25]).log() / 2)
    posterior = torch.tensor([[36, 1], [36, 1]]) / 37
    torch.testing.assert_close(step.posterior_logits.softmax(-1)[:2], posterior)
    kl = (posterior * (2 * posterior).log()).sum(-1)
    torch.testing.assert_close(step.kl, torch.cat([kl, torch.zeros(2)]))


@pytest.mark.parametrize("name,value", [("standardize", True), ("detach", True), ("width", 8), ("logit_scale", 2.0)])
def test_a_shared_prior_refuses_settings_of_the_network(name, value):
    with pytest.raises(UserError, match=f"shared is without an MLP, so {name} would change nothing"):
        latents.parse({"kind": "exact", "prior": "shared", name: value})


def test_equal_codes_give_the_plain_loss():
    """With codes of 0, whatever the prior, the loss is that of the policy without a latent."""
    policy, items = make_policy(code_scale=0.0), random_items(6)
    loss, _ = fast_step(policy, items, OBJECTIVES["dpo"])
    policy.latent = None
    batch = collate(items)
    chosen, rejected, *_ = policy(progress=0.0, **{key: batch[key] for key in MODEL_INPUTS})
    reference = torch.stack([torch.from_numpy(item["reference"]) for item in items])
    delta = 0.3 * (chosen - reference[:, 0] - rejected + reference[:, 1])
    torch.testing.assert_close(loss, -F.logsigmoid(delta).mean())


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_a_mixture_s_rewards_are_its_log_odds(scale):
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    log_prior, chosen, rejected = randn(50, 4).log_softmax(-1), scale * randn(50, 4), scale * randn(50, 4)
    a, b = mixture_rewards(log_prior, chosen, rejected)
    probability = (log_prior.exp() * torch.sigmoid(chosen - rejected)).sum(-1)
    torch.testing.assert_close(torch.sigmoid(a - b), probability)
    torch.testing.assert_close(a + b, (log_prior.exp() * (chosen + rejected)).sum(-1))
    assert torch.isfinite(marginal_loss(log_prior, -F.logsigmoid(chosen - rejected))).all()


UNUSED = {
    "kl_weight": 0.05, "kl_warmup": 0.5, "free_bits": 0.1, "information_weight": 0.1, "gumbel_noise": True,
    "gamma": {"start": 0.0}, "temperature": 1.0, "temperature_end": 0.5, "straight_through": True,
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_settings_of_the_bound_are_refused_even_at_their_defaults(name):
    latents.parse({"kind": "lpc", name: UNUSED[name]})
    with pytest.raises(UserError, match=rf"latent\.{name}: Extra inputs are not permitted"):
        latents.parse({"kind": "exact", name: UNUSED[name]})


def test_there_is_no_posterior():
    latent = latents.build(ExactSettings(codes=3), 8, seed=0)
    assert not latent.has_posterior and latent.noise_size == 0 and latent.schedules(0.5) == {}
    names = {name.partition(".")[0] for name, _ in latent.named_parameters()}
    assert names == {"codebook", "prior"}


def test_pairs_are_scored_by_the_mixture():
    """Accuracy is that of Σ_k p(k|x) σ(Δ_k) > ½, here code by code; the prior of another prompt; and no latent."""
    policy = make_policy(code_scale=1.0, dtype=torch.float32, logit_scale=40.0).eval()
    tokens = tokenize_pairs(make_pairs(12), make_tokenizer(), max_length=64, max_prompt_length=32)
    tokens.reference = np.random.default_rng(0).normal(-40, 10, (12, 2))
    prompt_ids = [str(i) for i in range(12)]
    objective = objectives.parse({"name": "dpo", "beta": 0.1})
    found = score_pairs(policy, tokens, prompt_ids, objective, batch_size=5, precision="float32")
    other = another_prompt(prompt_ids, seed=0)
    priors, margins, plain = [], [], []
    with torch.no_grad():
        for i in range(12):
            batch = collate([tokens[i]])
            encoded = policy.encode(**{key: batch[key] for key in MODEL_INPUTS})
            priors.append(policy.latent.prior_logits(encoded.h_x)[0].softmax(-1))
            deltas = []
            for z in [None, *policy.latent.codebook[:, None]]:
                chosen, rejected = policy.pair_logps(encoded, z)
                ratios = chosen - tokens.reference[i, 0] - rejected + tokens.reference[i, 1]
                deltas.append(0.1 * ratios[0])
            plain.append(deltas[0])
            margins.append(torch.stack(deltas[1:]))
    priors, margins = torch.stack(priors), torch.stack(margins)
    assert priors.max(-1).values.mean() > 0.5, "priors that are all alike would hide whose prior counts"
    for variant, weights in (("", priors), ("_shuffled", priors[other])):
        odds = torch.from_numpy(found[f"chosen_reward{variant}"] - found[f"rejected_reward{variant}"])
        expected = (weights * torch.sigmoid(margins)).sum(-1).double()
        torch.testing.assert_close(torch.sigmoid(odds), expected, rtol=1e-4, atol=1e-4)
    zero = found["chosen_reward_zero"] - found["rejected_reward_zero"]
    torch.testing.assert_close(torch.from_numpy(zero), torch.stack(plain).double(), rtol=1e-4, atol=1e-4)
    assert not any("posterior" in name for name in found)
    # The rule of the latent is one of all; `mode` is the code with the largest prior.
    assert np.array_equal(found["chosen_reward"], found["chosen_reward_by_mixture"])
    by_mode = torch.from_numpy(found["chosen_reward_by_mode"] - found["rejected_reward_by_mode"])
    expected = margins.gather(1, priors.argmax(-1, keepdim=True)).squeeze(1).double()
    torch.testing.assert_close(by_mode, expected, rtol=1e-4, atol=1e-4)
    policy.latent = latents.build(ExactSettings(codes=5, inference="mode"), 32, seed=1)
    by_mode = score_pairs(policy, tokens, prompt_ids, objective, batch_size=5, precision="float32")
    assert by_mode.keys() == found.keys()


def test_diagnostics_need_no_posterior():
    """What a posterior alone can tell is None; the rest is that of the prior."""
    policy = make_policy(dtype=torch.float32).eval()
    tokens = tokenize_pairs(make_pairs(40), make_tokenizer(), max_length=64, max_prompt_length=32)
    found = pair_latents(policy, tokens, batch_size=8, precision="float32")
    assert found.keys() == {"z", "h_x", "prior"} and found["prior"].shape == (40, 5)
    sources = [f"source-{i % 3}" for i in range(40)]
    prompts = [str(i) for i in range(40)]
    measures = latent_diagnostics(found["prior"], None, found["z"], found["h_x"], sources, prompt_id=prompts, seed=0)
    assert {name for name, value in measures.items() if value is None} == {"kl", "posterior_perplexity"}
    assert measures["codes"] == 5 and 1 < measures["prior_perplexity"] <= 5


@pytest.mark.parametrize("inference", ["mixture", "sample"])
def test_texts_are_written_with_drawn_codes(inference):
    """Each code as often as the prior says, here within 5 sigma."""
    latent = latents.build(ExactSettings(codes=3, inference=inference, code_scale=1.0), 4, seed=0)
    with torch.no_grad():
        latent.prior[2].weight.zero_()
        latent.prior[2].bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
    count = 4000
    uniform = torch.rand(count, latent.draw_size, generator=torch.Generator().manual_seed(0)).clamp(1e-7, 1 - 1e-7)
    z = latent.infer(torch.zeros(count, 4), uniform)
    for code, p in enumerate((0.2, 0.3, 0.5)):
        share = (z == latent.codebook[code]).all(-1).float().mean().item()
        assert abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5
