"""Architectures whose pairs cannot be packed, against themselves one sequence at a time."""

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from test_policy import PROMPTS, ROWS, batch_of, left_pad
from tiny import in_float64, make_backbone, make_tokenizer

from lpc import latents
from lpc.cli import UserError
from lpc.evaluation.harness import LatentLM
from lpc.latents.lpc import LPCSettings
from lpc.model import packing
from lpc.model.backbone import check_architecture
from lpc.model.policy import LatentPolicy

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_{part}": size for part, size in (("num_key_heads", 2), ("num_value_heads", 4))}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
# name: (options, why pairs are not packed)
PADDED = {
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 3}, "has sinks"),
    "qwen3_next": (
        {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "head_dim": 8}
        | {"shared_expert_intermediate_size": 16, **LINEAR, **EXPERTS},
        "layers are of type linear_attention$",
    ),
    "falcon_h1": ({"mamba_chunk_size": 4, "head_dim": 8, **MAMBA}, "layers are of type hybrid$"),
    "nemotron_h": (
        {"layers_block_type": ["mamba", "attention", "moe"], "n_routed_experts": 4, "num_hidden_layers": 3}
        | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4}
        | {"head_dim": 8, "moe_shared_expert_intermediate_size": 16, **EXPERTS},
        "layers are of type linear_attention$",
    ),
    "bamba": ({"attn_layer_indices": [1], **MAMBA}, "layers are of type linear_attention$"),
    "mamba2": (
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
        "layers are of type linear_attention$",
    ),
    "bloom": ({}, "transformers cannot exchange its attention"),
    "nemotron": ({}, r"its attention cannot be told which tokens to see \(log-probabilities differ by [\d.]+\)$"),
    "doge": ({}, "its attention has a mask of its own"),
    "llama4_text": (
        {"num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 8, "attention_chunk_size": 4},
        "layers are of type chunked_attention",
    ),
}


def make(name: str):
    backbone = make_backbone(name, **PADDED[name][0])
    for key, parameter in backbone.named_parameters():
        if key.endswith("sinks"):
            torch.nn.init.constant_(parameter, 2.0)
    return backbone


def make_checked(name: str):
    """As a checkpoint is loaded: the check decides, by measurement, whether Nemotron's pairs are packed."""
    backbone = make(name)
    check_architecture(backbone)
    return backbone


def latent_policy(backbone) -> LatentPolicy:
    settings = LPCSettings(codes=5, code_scale=1.0, logit_scale=10.0)
    return LatentPolicy(backbone, latents.build(settings, 32, seed=3)).eval()


def own_logps(backbone, ids: list[int]) -> torch.Tensor:
    """log π of each token of a sequence but the first."""
    logits = backbone(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)


def own_sums(backbone, rows) -> tuple[torch.Tensor, torch.Tensor]:
    sums = [[own_logps(backbone, p + c)[len(p) - 1 :].sum() for c in completions] for p, *completions in rows]
    return tuple(torch.stack(side) for side in zip(*sums, strict=True))


LONG = [*ROWS, (list(range(40, 71)), list(range(80, 100)), list(range(101, 104)))]


@pytest.mark.parametrize("name", PADDED)
@torch.no_grad()
def test_log_probabilities_and_states_are_the_models_own(name):
    """Token by token, over pairs of very different lengths; and the check on loading takes the padded path."""
    backbone = make_checked(name)
    policy = LatentPolicy(backbone)
    own = make(name)
    assert own.config._attn_implementation == backbone.config._attn_implementation != packing.NAME
    encoded = policy.encode(**batch_of(*LONG))
    logps = policy.token_logps(encoded.tokens, encoded.labels)
    worst = 0.0
    for i, (prompt, *completions) in enumerate(LONG):
        for side, completion in enumerate(completions):
            ids, row = prompt + completion, i + side * len(LONG)
            expected = own_logps(own, ids)[len(prompt) - 1 :]
            worst = max(worst, (logps[encoded.token_rows == row] - expected).abs().max().item())
            hidden = policy.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            ends = (encoded.h_chosen, encoded.h_rejected)[side]
            # The prompt's state is that of either sequence.
            for found, wanted in ((encoded.h_x[i], hidden[len(prompt) - 1]), (ends[i], hidden[-1])):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert worst <= 1e-5


@pytest.mark.parametrize("name", PADDED)
@torch.no_grad()
def test_a_pair_is_the_same_alone_and_in_a_batch(name):
    policy = LatentPolicy(make_checked(name))
    together = policy.pair_logps(policy.encode(**batch_of(*LONG)), None)
    for i, row in enumerate(LONG):
        alone = policy.pair_logps(policy.encode(**batch_of(row)), None)
        for side in range(2):
            torch.testing.assert_close(together[side][i], alone[side][0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", PADDED)
def test_gradients_are_those_of_the_naive_loss(name):
    """DPO's loss without a reference, by one sequence at a time and by padded pairs."""
    gradients = []
    for padded in (False, True):
        backbone = make_checked(name) if padded else make(name)
        if padded:
            policy = LatentPolicy(backbone)
            chosen, rejected = policy.pair_logps(policy.encode(**batch_of(*ROWS)), None)
        else:
            chosen, rejected = own_sums(backbone, ROWS)
        (-F.logsigmoid(0.1 * (chosen - rejected))).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in backbone.named_parameters()})
    naive, found = gradients
    scale = max(grad.abs().max() for grad in naive.values() if grad is not None)
    for key, expected in naive.items():
        assert (found[key] is None) == (expected is None), key
        if expected is not None:
            assert (found[key] - expected).abs().max() <= 1e-5 * scale, key


@pytest.mark.parametrize("checkpointing", [False, True])
def test_padded_and_packed_pairs_are_the_same(checkpointing):
    """A Llama in float64 on either path: states, log-probabilities and gradients, the latent's too."""
    results = []
    for padded in (False, True):
        backbone = in_float64(make_backbone())
        if padded:
            backbone.packing_obstacle = "a test"
        policy = latent_policy(backbone).train()
        assert (policy.obstacle == "a test") == padded
        if checkpointing:
            backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        noise = torch.full((len(LONG), 2, 5), 0.5)
        chosen, rejected, _, encoded = policy(progress=0.5, noise=noise, **batch_of(*LONG))
        (chosen.sum() - 2 * rejected.sum()).backward()
        states = [encoded.tokens, encoded.h_x, encoded.h_chosen, encoded.h_rejected, chosen, rejected]
        results.append(states + [parameter.grad for parameter in policy.parameters()])
        indices = [encoded.token_rows, encoded.token_columns, encoded.labels, torch.tensor(encoded.length)]
        results[-1] += indices
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, packed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PADDED)
def test_the_reason_is_named(name, tmp_path, caplog):
    make(name).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "lpc"):
        policy = LatentPolicy.from_pretrained(tmp_path)
    [line] = [record.getMessage() for record in caplog.records if record.name == "lpc"]
    assert line == f"{name}: pairs are padded, two sequences each, since {policy.obstacle}"
    assert re.search(PADDED[name][1], policy.obstacle)
    assert LatentPolicy(policy.backbone).obstacle == policy.obstacle


def test_packed_pairs_are_logged_too(checkpoint, caplog):
    with caplog.at_level(logging.INFO, "lpc"):
        assert LatentPolicy.from_pretrained(checkpoint).obstacle is None
    assert caplog.messages == ["llama: pairs are packed"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rwkv", {"attention_hidden_size": 32}, "generation from a prompt that is padded on the left differs"),
        ("xlstm", {"num_heads": 4, "embedding_dim": 32}, "its logits are not a linear head"),
        ("bert", {"is_decoder": False}, "its logits are not a linear head on the last hidden state of a causal model"),
    ],
)
def test_what_neither_path_serves_is_refused_by_name(name, options, message):
    with pytest.raises(UserError, match=f"^{name}: {message}.* is not supported$"):
        check_architecture(make_backbone(name, **options))


@pytest.mark.parametrize("name", PADDED)
@torch.no_grad()
def test_generation_has_the_z_of_each_prompt(name):
    """Greedy tokens after prompts of unequal length, against one pass over each sequence and step."""
    policy = latent_policy(make_checked(name))
    ids, mask = left_pad(PROMPTS)
    output = policy.generate(ids, mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    for row, prompt in zip(output[:, ids.shape[1] :].tolist(), PROMPTS, strict=True):
        sequence = list(prompt)
        z = policy.prior_z(policy.hidden(torch.tensor([prompt]))[:, -1], [prompt])[0]
        for token in row:
            logits = policy.head(policy.hidden(torch.tensor([sequence]))[0, -1] + z)
            assert token == int(logits.argmax())
            sequence.append(token)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_next"])
def test_the_harness_scores_what_the_model_says(tmp_path, name):
    """Log-likelihoods of a batch are those of one request at a time, with z of its context."""
    latent_policy(make(name)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    lm = LatentLM(tmp_path, batch_size=4, device="cpu", max_length=64)
    requests = [(None, list(range(5, 5 + n)), list(range(90, 90 + m))) for n, m in ((3, 4), (9, 1), (1, 7), (5, 5))]
    policy = lm.policy
    for (_, context, continuation), (found, _) in zip(requests, lm._loglikelihood_tokens(requests, True), strict=True):
        with torch.no_grad():
            hidden = policy.hidden(torch.tensor([context + continuation]))[0]
            z = policy.prior_z(hidden[len(context) - 1][None], [context])
            logps = policy.head(hidden[len(context) - 1 : -1] + z).log_softmax(-1)
        expected = logps[torch.arange(len(continuation)), continuation].sum().item()
        assert found == pytest.approx(expected, abs=1e-4)
