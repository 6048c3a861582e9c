"""Rewards and latents of pairs against a naive version in float64: each completion a sequence of its own, all logits of
the vocabulary, and z computed here from the latent's weights and the paper's equations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import in_float64, make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.data.tokens import tokenize_pairs
from lpc.evaluation.preference import another_prompt, pair_latents, score_pairs
from lpc.latents.parts.draws import prompt_uniform
from lpc.model.policy import LatentPolicy

PAIRS, FEATURES = 7, 32
OPTIONS = {"batch_size": 3, "precision": "float32"}
OBJECTIVES = {"dpo": {"name": "dpo", "beta": 0.3}, "simpo": {"name": "simpo", "beta": 2.0, "margin": 0.5}}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SETTINGS = {
    "vector": {"kind": "vector", "code_scale": 0.7},
    "mlp": {"kind": "mlp", "codes": 5, "code_scale": 0.7},
    "gaussian": {"kind": "gaussian", "code_scale": 0.7, "logit_scale": 10.0},
    "lpc": {"kind": "lpc", "codes": 5, "code_scale": 0.7, "logit_scale": 10.0, "temperature_end": 0.6},
}
VARIANTS = {
    None: [""],
    "vector": ["", "_zero", "_shuffled"],
    "mlp": ["", "_zero", "_shuffled"],
    "gaussian": ["", "_by_mean", "_by_sample", "_zero", "_shuffled", "_posterior", "_posterior_swapped"],
    "lpc": [
        *("", "_by_mean", "_by_mode", "_by_sample", "_by_gumbel", "_by_mixture"),
        *("_zero", "_shuffled", "_posterior", "_posterior_swapped"),
    ],
}


class Oracle:
    """Hidden states and log-probabilities of every pair, one sequence at a time."""

    @torch.no_grad()
    def __init__(self, kind: str | None):
        torch.manual_seed(1)
        self.kind, latent = kind, None
        if kind is not None:
            latent = latents.build(latents.parse(SETTINGS[kind]), FEATURES, seed=2)
            for name, buffer in latent.named_buffers():
                if "standardizer" not in name:
                    continue
                buffer.copy_(torch.rand(FEATURES) + (0.5 if name.endswith("std") else -0.5))
        self.policy = LatentPolicy(make_backbone(), latent).eval()
        self.weights = {} if latent is None else {name: value.double() for name, value in latent.state_dict().items()}
        rows = make_pairs(PAIRS)
        self.prompt_ids = rows["prompt_id"].to_pylist()
        self.tokens = tokenize_pairs(rows, make_tokenizer(), max_length=64, max_prompt_length=32)
        self.tokens.reference = -50 * np.random.default_rng(0).random((PAIRS, 2))
        self.backbone = in_float64(make_backbone())
        sides = (self.tokens.chosen, self.tokens.rejected)
        self.hidden = [[self.states(i, side[i]) for side in sides] for i in range(PAIRS)]
        self.h_x = torch.stack([self.hidden[i][0][len(self.tokens.prompts[i]) - 1] for i in range(PAIRS)])
        self.h_chosen, self.h_rejected = (
            torch.stack([self.hidden[i][side][-1] for i in range(PAIRS)]) for side in (0, 1)
        )

    def states(self, i: int, completion: np.ndarray) -> torch.Tensor:
        ids = torch.tensor([[*self.tokens.prompts[i].tolist(), *completion.tolist()]])
        return self.backbone.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]

    def mlp(self, name: str, h: torch.Tensor) -> torch.Tensor:
        w = self.weights
        h = F.gelu(h @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
        return h @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]

    def standardized(self, name: str, h: torch.Tensor) -> torch.Tensor:
        return (h - self.weights[f"{name}_standardizer.mean"]) / self.weights[f"{name}_standardizer.std"]

    def prior(self) -> torch.Tensor:
        return self.mlp("prior", self.standardized("prompt", self.h_x)).softmax(-1)

    def posterior(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        ends = [self.standardized("completion", h) for h in (first, second)]
        return self.mlp("posterior", torch.cat(ends, -1))

    def posterior_z(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """z of each pair [n, d] from the posterior's codes, or its mean."""
        outputs = self.posterior(first, second)
        if self.kind == "lpc":
            return outputs.softmax(-1) @ self.weights["codebook"]
        return SETTINGS["gaussian"]["code_scale"] * outputs[:, :FEATURES]

    def prior_z(self) -> torch.Tensor:
        """z of each pair [n, d] as at inference."""
        if self.kind == "lpc":
            return self.prior() @ self.weights["codebook"]
        if self.kind == "mlp":
            return self.mlp("mlp", self.standardized("prompt", self.h_x))
        if self.kind == "gaussian":
            return (
                SETTINGS["gaussian"]["code_scale"]
                * self.mlp("prior", self.standardized("prompt", self.h_x))[:, :FEATURES]
            )
        if self.kind == "vector":
            return self.weights["vector"].expand(PAIRS, -1)
        return torch.zeros(PAIRS, FEATURES, dtype=torch.float64)

    def other_z(self) -> dict[str, torch.Tensor]:
        """z of each pair [n, d] by each rule of inference that takes one z."""
        if self.kind not in ("lpc", "gaussian"):
            return {}
        count = SETTINGS["lpc"]["codes"] if self.kind == "lpc" else FEATURES
        uniform = prompt_uniform(0, self.tokens.prompts, count, torch.device("cpu")).double()
        if self.kind == "gaussian":
            mean, log_std = self.mlp("prior", self.standardized("prompt", self.h_x)).chunk(2, -1)
            normal = torch.distributions.Normal(0.0, 1.0).icdf(uniform)
            scale = SETTINGS["gaussian"]["code_scale"]
            return {"_by_mean": scale * mean, "_by_sample": scale * (mean + log_std.exp() * normal)}
        prior, codebook = self.prior(), self.weights["codebook"]
        noisy = prior.log() - (-uniform.log()).log()
        weights = {"_by_mean": prior, "_by_gumbel": (noisy / SETTINGS["lpc"]["temperature_end"]).softmax(-1)}
        codes = {"_by_mode": prior.argmax(-1), "_by_sample": noisy.argmax(-1)}
        weights |= {rule: F.one_hot(code, count).double() for rule, code in codes.items()}
        return {rule: value @ codebook for rule, value in weights.items()}

    def mixture_odds(self, objective: dict) -> np.ndarray:
        """Σ_k p_k σ(Δ_k) of each pair [n]."""
        prior, codebook = self.prior(), self.weights["codebook"]
        of_codes = [self.rewards(code.expand(PAIRS, -1), objective) for code in codebook]
        margins = torch.tensor(np.stack([found[:, 0] - found[:, 1] for found in of_codes], -1))
        return (prior * margins.sigmoid()).sum(-1).numpy()

    @torch.no_grad()
    def rewards(self, z: torch.Tensor, objective: dict, log_ratio: bool = False) -> np.ndarray:
        """[n, 2]: rewards of chosen and rejected where z [n, d] is added before the head; `log_ratio`: equation 4's."""
        found = np.empty((PAIRS, 2))
        for i in range(PAIRS):
            for side, completion in enumerate((self.tokens.chosen[i], self.tokens.rejected[i])):
                logps = self.backbone.lm_head(self.hidden[i][side] + z[i]).log_softmax(-1)
                start = len(self.tokens.prompts[i]) - 1
                logp = sum(logps[start + t, token].item() for t, token in enumerate(completion))
                if objective["name"] == "dpo" or log_ratio:
                    found[i, side] = objective["beta"] * (logp - self.tokens.reference[i, side])
                else:
                    found[i, side] = objective["beta"] * logp / len(completion)
        return found


def test_every_kind_has_its_oracle():
    """But for mixtures of all codes, whose naive version is in latents/test_exact.py."""
    one_z = {name for name, kind in latents.KINDS.items() if not kind.marginal}
    assert one_z == set(SETTINGS) and set(VARIANTS) == {None, *SETTINGS}


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def oracle(request):
    return Oracle(request.param)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rewards(oracle, name):
    objective = OBJECTIVES[name]
    found = score_pairs(oracle.policy, oracle.tokens, oracle.prompt_ids, objectives.parse(objective), **OPTIONS)
    variants = VARIANTS[oracle.kind] + ["_log_ratio"] * (name == "simpo")
    assert set(found) == {f"{side}_reward{variant}" for side in ("chosen", "rejected") for variant in variants}
    found = {v: np.stack([found[f"chosen_reward{v}"], found[f"rejected_reward{v}"]], -1) for v in variants}

    z = {"": oracle.prior_z(), "_zero": torch.zeros(PAIRS, FEATURES, dtype=torch.float64)}
    if "_posterior" in variants:
        z["_posterior"] = oracle.posterior_z(oracle.h_chosen, oracle.h_rejected)
        z["_posterior_swapped"] = oracle.posterior_z(oracle.h_rejected, oracle.h_chosen)
    expected = {variant: oracle.rewards(value, objective) for variant, value in z.items() if variant in variants}
    by_rule = {rule: oracle.rewards(value, objective) for rule, value in oracle.other_z().items()}
    if name == "simpo":
        by_rule["_log_ratio"] = oracle.rewards(z[""], objective, log_ratio=True)
    for variant, value in by_rule.items():
        np.testing.assert_allclose(found[variant], value, **TOLERANCE, err_msg=variant)
        same = variant == "_by_mean"
        assert same == (np.abs(value - expected[""]).max() < 0.02), variant
    if "_by_mixture" in variants:
        odds = torch.tensor(found["_by_mixture"][:, 0] - found["_by_mixture"][:, 1]).sigmoid()
        np.testing.assert_allclose(odds, oracle.mixture_odds(objective), **TOLERANCE)
    for variant, value in expected.items():
        np.testing.assert_allclose(found[variant], value, **TOLERANCE, err_msg=variant)
    # Otherwise one variant in place of another would pass.
    for variant, value in expected.items():
        for other, another in expected.items():
            assert other == variant or np.abs(value - another).max() > 0.05, (variant, other)

    if "_shuffled" in variants:
        # Row j: the reward of every pair with the z of pair j.
        of_z = np.stack([oracle.rewards(z[""][j].expand(PAIRS, -1), objective) for j in range(PAIRS)])
        for i in range(PAIRS):
            others = [j for j in range(PAIRS) if oracle.prompt_ids[j] != oracle.prompt_ids[i]]
            assert any(np.allclose(found["_shuffled"][i], of_z[j, i], **TOLERANCE) for j in others)
        if oracle.kind != "vector":
            assert np.abs(found["_shuffled"] - expected[""]).max() > 0.05


def test_latents(oracle):
    if oracle.kind is None:
        return  # nothing to extract; the step refuses it
    found = pair_latents(oracle.policy, oracle.tokens, **OPTIONS)
    expected = {"h_x": oracle.h_x, "z": oracle.prior_z()}
    if oracle.kind == "lpc":
        expected |= {
            "prior": oracle.prior(),
            "posterior": oracle.posterior(oracle.h_chosen, oracle.h_rejected).softmax(-1),
        }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value.numpy(), **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompts", [2, 3, 10])
def test_another_prompt(prompts, seed):
    """Every pair gets a pair of a different prompt, pairs of one prompt the same one, and every prompt is used."""
    prompt_ids = [f"prompt {i}" for i in np.random.default_rng(seed).permutation(np.arange(3 * prompts) % prompts)]
    other = another_prompt(prompt_ids, seed)
    given = {}
    for prompt, position in zip(prompt_ids, other, strict=True):
        assert prompt_ids[position] != prompt
        assert given.setdefault(prompt, position) == position
    assert {prompt_ids[position] for position in other} == set(prompt_ids)


def test_a_single_prompt_has_no_other():
    assert another_prompt(["only", "only"], 0).tolist() == [0, 0]
