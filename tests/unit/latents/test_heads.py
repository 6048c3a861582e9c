"""A mixture of heads: it starts as `exact`, and evaluation and texts have the head of their code at every token.

Its loss and gradients stand beside those of `exact`, in test_exact.py.
"""

import pytest
import torch
from small import tokenised
from test_exact import OBJECTIVES, fast_step, make_policy
from test_step import random_items

from lpc import latents, objectives
from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.evaluation.preference import pair_latents, score_pairs
from lpc.export.write import table_obstacle, write_code, write_model
from lpc.latents.parts.heads import head_shift
from lpc.model.policy import LatentPolicy

SETTINGS = {"kind": "heads", "rank": 3, "dtype": torch.float32}


def test_it_starts_as_exact():
    """The same codes and prior of a seed, and changes of the head that are 0."""
    losses = []
    for kind in ("heads", "exact"):
        policy = make_policy()
        policy.latent = latents.build(latents.parse({"kind": kind, "codes": 5, "code_scale": 0.3}), 32, seed=1).double()
        losses.append(fast_step(policy, random_items(6), OBJECTIVES["dpo"])[0])
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_forced_head_writes_by_its_own_logits():
    policy = make_policy(**SETTINGS, code_scale=1.0).eval()
    prompts = torch.tensor([[5, 6, 7, 8], [40, 41, 42, 43]])
    output = policy.generate(prompts, code=2, max_new_tokens=10, do_sample=False, eos_token_id=None)
    head, changed = policy.latent.all_codes()[2], False
    for row in output.tolist():
        for end in range(4, 14):
            hidden = policy.hidden(torch.tensor([row[:end]]))[0, -1]
            assert row[end] == int(policy.head(hidden + head_shift(head, hidden)).argmax())
            changed |= row[end] != int(policy.head(hidden + policy.latent.codebook[2]).argmax())
    assert changed  # the part that reads hidden states mattered


@pytest.mark.parametrize("rule", ["mean", "mode", "sample"])
@torch.no_grad()
def test_log_probabilities_of_a_rule_are_those_of_its_weights(rule):
    """Σ_k w_k of what the heads add, in float32 and with a head in bfloat16, to whose logits it is added whole."""
    policy = make_policy(**SETTINGS, inference=rule, logit_scale=5.0).eval()
    batch = collate(random_items(4))
    encoded = policy.encode(**{name: batch[name] for name in MODEL_INPUTS})
    prompts = [item["prompt"].tolist() for item in random_items(4)]
    weights = policy.prior_weights(encoded.h_x, prompts)
    added = sum(
        weights[encoded.token_rows % 4, k, None] * head_shift(head, encoded.tokens)
        for k, head in enumerate(policy.latent.all_codes())
    )
    logps = (policy.head(encoded.tokens + added)).log_softmax(-1).gather(1, encoded.labels[:, None]).squeeze(1)
    expected = torch.stack([logps[encoded.token_rows == row].sum() for row in range(8)])
    z = policy.prior_z(encoded.h_x, prompts)
    torch.testing.assert_close(torch.cat(policy.pair_logps(encoded, z)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.cat(policy.pair_logps(encoded, z)), expected, rtol=0.02, atol=0.1)


def test_what_is_kept_of_z_is_what_it_adds_to_h_x(tmp_path):
    policy, tokens = make_policy(**SETTINGS, inference="mean").eval(), tokenised()
    kept = pair_latents(policy, tokens, batch_size=16, precision="float32")
    h, weights = torch.tensor(kept["h_x"]), torch.tensor(kept["prior"])
    with torch.no_grad():
        expected = sum(weights[:, k, None] * head_shift(head, h) for k, head in enumerate(policy.latent.all_codes()))
    torch.testing.assert_close(torch.tensor(kept["z"]), expected)
    policy.save_pretrained(tmp_path)
    again = LatentPolicy.from_pretrained(tmp_path).eval()
    dpo, names = objectives.parse({"name": "dpo"}), list(map(str, range(len(tokens))))
    one, two = (score_pairs(p, tokens, names, dpo, batch_size=16, precision="float32") for p in (policy, again))
    assert {f"chosen_reward_by_{rule}" for rule in policy.latent.inference_rules()} < one.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_it_is_not_exported_as_biases(tmp_path):
    policy = make_policy(**SETTINGS)
    assert "heads: what it adds depends on the token, so no table" in table_obstacle(policy)
    with pytest.raises(UserError, match=r"latent\.kind heads: what it adds depends on the token, so no bias of"):
        write_code(policy, 0, tmp_path / "code")
    with pytest.raises(UserError, match=r"latent\.kind heads: cannot be exported"):
        write_model(policy, tmp_path / "model")
    assert not list(tmp_path.iterdir())
