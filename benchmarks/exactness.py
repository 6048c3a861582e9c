"""The worst difference of the fast code from each of its oracles, as a table.

    PYTHONPATH=src:tests:tests/unit/latents:tests/unit/model:tests/unit/objectives python benchmarks/exactness.py

The oracles are those of the tests: naive float64 versions written from the equations, the models' own logits, TRL.
"""

import importlib

import numpy as np
import objective_checks
import test_code_logps
import test_logps
import test_policy
import test_step
import torch
from tiny import in_float64, make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.latents.lpc import LPCSettings
from lpc.model.code_logps import code_logps
from lpc.model.logps import token_logps
from lpc.model.noise import counter_uniform
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps


def worst(actual, expected) -> float:
    """Largest difference, relative to the expected value where that is larger than 1."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    return ((actual - expected).abs() / expected.abs().clamp_min(1)).max().item()


def objective_rows():
    generator = torch.Generator().manual_seed(0)
    for name in objectives.KINDS:
        oracle = importlib.import_module(f"test_{name}")
        for scale in (1.0, 1e4):
            count = objective_checks.count(oracle.CASE)
            inputs = [torch.randn(500, generator=generator, dtype=torch.float64) * scale for _ in range(count)]
            losses, _, _ = oracle.CASE.formula(*inputs)
            expected = [oracle.naive([x[i].item() for x in inputs]) for i in range(500)]
            yield f"{name} loss, log-probabilities of about {scale:g}", "naive float64", worst(losses, expected)


def logps_rows():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        hidden, weight, labels, _ = test_logps.problem(200, 64, 500)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        expected = test_logps.naive(hidden.double(), weight.double(), labels, None, None, 1.0)
        actual = token_logps(hidden, weight, labels, chunk=64)
        yield f"chunked log-probabilities, {str(dtype)[6:]}", "full float64 logits", worst(actual, expected)
        codes = test_code_logps.randn(8, 64).to(dtype)
        expected = test_code_logps.naive_codes(hidden.double(), weight.double(), labels, codes.double())
        actual = code_logps(hidden, weight, labels, codes, chunk=64)
        yield f"under 8 codes at once, {str(dtype)[6:]}", "full float64 logits", worst(actual, expected)
    # As TRL and transformers would have it, whose softmax adds up a long row less exactly.
    hidden, weight, labels, _ = test_logps.problem(40, 256, 128_256, spread=0.3)
    hidden, weight = hidden.float(), weight.float()
    expected = test_logps.naive(hidden.double(), weight.double(), labels, None, None, 1.0)
    for what, actual in (
        ("chunked log-probabilities", token_logps(hidden, weight, labels)),
        ("torch.log_softmax", test_logps.naive(hidden, weight, labels, None, None, 1.0)),
    ):
        # As they are, not relative: sums over a completion add them up.
        difference = (actual - expected).abs().max().item()
        yield f"{what}, vocabulary 128,256, float32, absolute", "full float64 logits", difference


def step_rows():
    for name, objective in test_step.OBJECTIVES.items():
        config = LPCSettings(codes=5, code_scale=0.3, kl_weight=0.7)
        policy = LatentPolicy(in_float64(make_backbone()))
        policy.latent = latents.build(config, 32, seed=1).double()
        items = test_step.random_items(12)
        noise = counter_uniform(0, 4, torch.arange(12), 10).double().unflatten(1, (2, 5))
        batch = collate(items)
        chosen, rejected, step, _ = policy(progress=0.3, noise=noise, **{key: batch[key] for key in MODEL_INPUTS})
        reference = torch.stack([torch.from_numpy(item["reference"]) for item in items])
        batch |= {"reference_chosen_logps": reference[:, 0], "reference_rejected_logps": reference[:, 1]}
        losses, _, _ = objectives.parse(objective).evaluate(chosen, rejected, batch)
        loss = (losses + 0.7 * step.kl).mean()
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in policy.named_parameters()}
        policy.zero_grad()
        expected = test_step.naive_step(policy, items, objective, config, noise, 0.3)
        expected.backward()
        yield f"whole latent step, {name}: loss", "naive float64, pair by pair", worst(loss.detach(), expected.detach())
        difference = max(worst(gradients[key], p.grad) for key, p in policy.named_parameters())
        yield f"whole latent step, {name}: all gradients", "naive float64, pair by pair", difference


@torch.no_grad()
def architecture_rows():
    for name in test_policy.ARCHITECTURES:
        policy = test_policy.make_policy(name, latent=False)
        sums = policy.pair_logps(policy.encode(**test_policy.batch_of(*test_policy.ROWS)), None)
        difference = 0.0
        for i, (prompt, *completions) in enumerate(test_policy.ROWS):
            for side, completion in enumerate(completions):
                ids = torch.tensor([prompt + completion])
                logps = policy.backbone(input_ids=ids).logits[0].log_softmax(-1)
                expected = sum(logps[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1]))
                difference = max(difference, worst(sums[side][i], expected))
        yield f"{name}: sums over completions, float32", "the model's own logits, unpadded", difference


def batch_rows():
    tokens = tokenize_pairs(make_pairs(48), make_tokenizer(), max_length=64, max_prompt_length=32)
    policy = LatentPolicy(make_backbone())
    everything = np.ones(len(tokens), bool)
    a, b = (reference_logps(policy, tokens, everything, batch_size=n, precision="float32")[0] for n in (1, 48))
    yield "reference log-probabilities, batch 48", "batch 1", worst(a, b)


def main():
    print("| what | against | worst difference |\n|---|---|---|")
    for rows in (objective_rows, logps_rows, step_rows, architecture_rows, batch_rows):
        for what, oracle, difference in rows():
            print(f"| {what} | {oracle} | {difference:.1e} |")


if __name__ == "__main__":
    main()
