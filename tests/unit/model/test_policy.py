"""The policy over real architectures of transformers: log-probabilities, saving, loading, generation."""

import json

import pytest
import torch
import transformers
from tiny import make_backbone
from transformers import AutoModelForCausalLM

from lpc import latents
from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.latents.lpc import LPCSettings
from lpc.model.backbone import check_architecture
from lpc.model.policy import LatentPolicy

ARCHITECTURES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 3},  # shorter than the longest of ROWS
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {},
    "gemma2": {
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 0.5,
        "sliding_window": 3,
        "attn_implementation": "eager",
    },
    "gemma3_text": {"sliding_window": 3},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 2.5},
    "olmo2": {},
    "phi3": {},
}


def make_policy(name: str = "llama", latent: bool = True, **options) -> LatentPolicy:
    backbone = make_backbone(name.removesuffix("-tied"), **ARCHITECTURES[name])
    settings = LPCSettings(**{"codes": 5, "code_scale": 1.0, "logit_scale": 10.0} | options)
    return LatentPolicy(backbone, latents.build(settings, 32, seed=3) if latent else None).eval()


def batch_of(*rows: tuple[list[int], list[int], list[int]]) -> dict:
    import numpy as np

    items = [
        {"index": i, "prompt": np.array(p), "chosen": np.array(c), "rejected": np.array(r)}
        for i, (p, c, r) in enumerate(rows)
    ]
    return {key: collate(items)[key] for key in MODEL_INPUTS}


ROWS = [([5, 6, 7], [8, 9], [10, 11, 12, 13]), ([20], [21, 22, 23, 24, 25], [26]), ([30, 31, 32, 33], [34], [35, 36])]


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_pair_logps_are_the_models_own(name):
    """Sums over completion tokens of packed pairs equal the logits of the architecture under its own attention,
    sequence by sequence."""
    own = make_backbone(name.removesuffix("-tied"), **ARCHITECTURES[name])
    check_architecture(make_backbone(name.removesuffix("-tied"), **ARCHITECTURES[name]))
    check_architecture(make_backbone(name.removesuffix("-tied"), **ARCHITECTURES[name]))
    policy = make_policy(name, latent=False)
    sums = policy.pair_logps(policy.encode(**batch_of(*ROWS)), None)
    for i, (prompt, *completions) in enumerate(ROWS):
        for side, completion in enumerate(completions):
            ids = torch.tensor([prompt + completion])
            logps = own(input_ids=ids).logits[0].log_softmax(-1)
            expected = sum(logps[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1]))
            torch.testing.assert_close(sums[side][i], expected, rtol=1e-4, atol=1e-4)


def test_an_architecture_with_other_logits_is_refused_by_name():
    backbone = make_backbone()
    original = backbone.lm_head.forward
    backbone.lm_head.forward = lambda h: original(h) * 1.5  # a head that is not what its weights say
    with pytest.raises(UserError, match="llama: its logits are not a linear head"):
        check_architecture(backbone)


def test_gradient_checkpointing_changes_nothing():
    """The second forward pass over a layer, in the backward pass, sees the same pairs."""
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy("mistral").train()
        if checkpointing:
            policy.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        chosen, rejected, _, _ = policy(progress=0.5, noise=torch.full((3, 2, 5), 0.5), **batch_of(*ROWS))
        (chosen.sum() - 2 * rejected.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2"])
@pytest.mark.parametrize("latent", [True, False])
def test_save_and_load(tmp_path, name, latent):
    """Bit-equal weights and z after a round trip; the backbone loads in plain transformers; shards load too."""
    policy = make_policy(name, latent)
    policy.save_pretrained(tmp_path)
    loaded = LatentPolicy.from_pretrained(tmp_path)
    for (key, a), (other, b) in zip(policy.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other and torch.equal(a, b), key
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(plain(ids).logits, policy.backbone(ids).logits)
    h = torch.randn(2, 32)
    if latent:
        assert torch.equal(loaded.prior_z(h, [[1], [2]]), policy.prior_z(h, [[1], [2]]))
    else:
        assert loaded.prior_z(h, [[1], [2]]) is None
    assert (tmp_path / "latent.safetensors").exists() == latent
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


def test_a_file_of_settings_holds_those_of_the_kind_alone(tmp_path):
    settings = latents.parse({"kind": "vector", "code_scale": 0.5})
    LatentPolicy(make_backbone(), latents.build(settings, 32, seed=0)).save_pretrained(tmp_path)
    expected = {"kind": "vector", "code_scale": 0.5, "learning_rate": 1e-4, "latent_first": 0.0}
    assert json.loads((tmp_path / "latent.json").read_text()) == expected


def test_how_z_is_inferred_may_change_without_training(tmp_path):
    """Settings of that role win over the saved ones; the seed changes what is drawn and no weight."""
    make_policy(logit_scale=1.0).save_pretrained(tmp_path)
    h, prompts = torch.randn(64, 32), [[i] for i in range(64)]
    first, again, other = (
        LatentPolicy.from_pretrained(tmp_path, inference={"inference": "sample", "inference_seed": seed})
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.prior_z(h, prompts), again.prior_z(h, prompts))
    assert not torch.equal(first.prior_z(h, prompts), other.prior_z(h, prompts))
    assert torch.equal(first.latent.codebook, other.latent.codebook)
    with pytest.raises(
        UserError,
        match=r"latent\.json: latent\.inference: Input should be 'mean', 'mode', 'sample', 'gumbel' or 'mixture'",
    ):
        LatentPolicy.from_pretrained(tmp_path, inference={"inference": "men"})


def test_sharded_backbone_loads(tmp_path):
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    for file in tmp_path.glob("model*.safetensors"):
        file.unlink()
    policy.backbone.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = LatentPolicy.from_pretrained(tmp_path)
    pairs = zip(policy.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_broken_checkpoints_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        LatentPolicy.from_pretrained(tmp_path / "nothing")
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "latent.json").read_text())
    (tmp_path / "latent.json").write_text(json.dumps(settings | {"codes": 7}))
    with pytest.raises(UserError, match=r"latent\.safetensors: does not fit"):
        LatentPolicy.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        LatentPolicy.from_pretrained(tmp_path)


# ---- generation


def left_pad(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@torch.no_grad()
def next_logps(policy: LatentPolicy, ids: list[int], z: torch.Tensor) -> torch.Tensor:
    """log π(next | ids, z), from the equations: one unpadded pass, z added before the head."""
    hidden = policy.hidden(torch.tensor([ids]))[0, -1]
    return policy.backbone.lm_head(hidden + z).log_softmax(-1)


@torch.no_grad()
def z_of(policy: LatentPolicy, prompt: list[int]) -> torch.Tensor:
    return policy.prior_z(policy.hidden(torch.tensor([prompt]))[:, -1], [prompt])[0]


PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [77, 3, 99]]


@pytest.mark.parametrize("code", [None, 2])
def test_greedy_generation_equals_the_step_by_step_reference(code):
    policy = make_policy()
    ids, mask = left_pad(PROMPTS)
    output = policy.generate(ids, mask, code=code, max_new_tokens=12, do_sample=False, eos_token_id=None)
    changed = False
    for row, prompt in zip(output[:, ids.shape[1] :].tolist(), PROMPTS, strict=True):
        z = z_of(policy, prompt) if code is None else policy.latent.codebook[code]
        sequence = list(prompt)
        for token in row:
            expected = next_logps(policy, sequence, z)
            changed |= int(next_logps(policy, sequence, torch.zeros(32)).argmax()) != token
            assert token == int(expected.argmax())
            sequence.append(token)
    assert changed  # else z never mattered and the test would prove nothing


def test_sampling_draws_from_the_latent_policy():
    """Given transformers' own random numbers, each sampled token is the one that the reference distribution gives."""
    policy = make_policy()
    ids, mask = left_pad(PROMPTS)
    options = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "eos_token_id": None}
    torch.manual_seed(11)
    output = policy.generate(ids, mask, **options)
    zs = [z_of(policy, prompt) for prompt in PROMPTS]
    sequences = [list(prompt) for prompt in PROMPTS]
    torch.manual_seed(11)
    for _ in range(8):
        logps = torch.stack([next_logps(policy, s, z) for s, z in zip(sequences, zs, strict=True)])
        tokens = torch.multinomial(logps.softmax(-1), 1).squeeze(-1).tolist()
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(token)
    assert [row[len(p) :] for row, p in zip(sequences, PROMPTS, strict=True)] == output[:, ids.shape[1] :].tolist()


def test_beam_search_equals_an_exhaustive_reference():
    """Two steps with as many beams as the vocabulary has tokens search everything: the best pair of tokens wins."""
    backbone = make_backbone(vocabulary=24)
    settings = LPCSettings(codes=5, code_scale=1.0, logit_scale=10.0)
    policy = LatentPolicy(backbone, latents.build(settings, 32, seed=3)).eval()
    prompts = [[5, 6, 7], [8]]
    ids, mask = left_pad(prompts)
    output = policy.generate(ids, mask, num_beams=24, max_new_tokens=2, do_sample=False, eos_token_id=None)
    for row, prompt in zip(output[:, ids.shape[1] :].tolist(), prompts, strict=True):
        z = z_of(policy, prompt)
        first = next_logps(policy, prompt, z)
        scores = torch.stack([first[t] + next_logps(policy, [*prompt, t], z) for t in range(24)])
        assert row == [int(scores.argmax()) // 24, int(scores.argmax()) % 24]


def test_several_sequences_per_prompt_keep_their_prompts_z():
    policy = make_policy()
    ids, mask = left_pad(PROMPTS)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "num_return_sequences": 3, "eos_token_id": None}
    together = policy.generate(ids, mask, **options)
    for i, prompt in enumerate(PROMPTS):
        alone = policy.generate(torch.tensor([prompt]), **options)
        assert together[3 * i : 3 * i + 3, ids.shape[1] :].tolist() == alone[:, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["lpc", "gaussian"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_sampled_z_is_the_prompts_own_wherever_it_is_drawn(monkeypatch, kind, beams):
    """Generation of a padded batch, with beams or without, has for each prompt the z that the prompt alone has."""
    settings = latents.parse({"kind": kind, "inference": "sample", "code_scale": 1.0})
    policy = LatentPolicy(make_backbone(), latents.build(settings, 32, seed=3)).eval()
    seen, infer = [], policy.latent.infer
    monkeypatch.setattr(policy.latent, "infer", lambda *arguments: seen.append(infer(*arguments)) or seen[-1])
    ids, mask = left_pad(PROMPTS)
    policy.generate(ids, mask, max_new_tokens=2, do_sample=False, num_beams=beams, eos_token_id=None)
    (drawn,) = seen
    expected = torch.stack([z_of(policy, prompt) for prompt in PROMPTS]).repeat_interleave(beams, 0)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_generation_without_cache_is_the_same():
    policy = make_policy()
    ids, mask = left_pad(PROMPTS)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(policy.generate(ids, mask, **options), policy.generate(ids, mask, use_cache=False, **options))


def test_generation_refuses_what_would_give_a_wrong_z():
    policy = make_policy()
    ids, mask = left_pad(PROMPTS)
    with pytest.raises(ValueError, match="left padding"):
        policy.generate(ids.flip(1), mask.flip(1))
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        policy.generate(ids, mask, prefill_chunk_size=2)
    with pytest.raises(ValueError, match="codes 0 to 4"):
        policy.generate(ids, mask, code=5, max_new_tokens=1)
    with pytest.raises(ValueError, match="no latent"):
        make_policy(latent=False).generate(ids, mask, code=0)
    assert not policy.head._forward_pre_hooks  # nothing is left behind after an error either


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropout_is_off_in_every_policy(tmp_path, kind):
    """GPT-2 and OPT have dropout by default. A loaded policy gives the same numbers in training and evaluation mode."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "word_embed_proj_dim": 32, "vocab_size": 384}
    config = transformers.AutoConfig.for_model(kind, **sizes, **({"layerdrop": 0.5} if kind == "opt" else {}))
    original = transformers.AutoModelForCausalLM.from_config(config)
    original.save_pretrained(tmp_path)
    policy = LatentPolicy.from_pretrained(tmp_path)
    ids = torch.arange(1, 25)[None]
    assert not torch.equal(original.train()(ids).logits, original(ids).logits)
    expected = policy.eval().hidden(ids)
    for _ in range(3):
        assert torch.equal(policy.train().hidden(ids), expected)


@pytest.mark.parametrize("name", ["llama", "cohere"])
def test_a_unit_of_z_changes_logits_by_a_nat(name):
    policy = make_policy(name, latent=False)
    z = torch.randn(1000, 32, generator=torch.Generator().manual_seed(0)) * policy.logit_unit()
    logits = (z @ policy.head.weight.t() * policy.scale).detach()
    assert logits.var(-1).mean().sqrt().item() == pytest.approx(1, rel=0.03)


def test_covariance_of_the_head_gives_the_variance_of_logits():
    policy, v = make_policy("cohere", latent=False), torch.randn(5, 32)
    logits = (v @ policy.head.weight.t() * policy.scale).detach()
    variance = ((v @ policy.logit_covariance()) * v).sum(-1)
    torch.testing.assert_close(variance, logits.var(-1, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_on_the_left_changes_no_generated_token(name):
    policy, prompts = make_policy(name), [[5, 6, 7], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31]]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    together = policy.generate(*left_pad(prompts), **options)[:, -5:]
    alone = [policy.generate(torch.tensor([prompt]), **options)[0, -5:] for prompt in prompts]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere"])
def test_a_small_z_counts_in_bfloat16(name):
    """What z changes in the log-probabilities under autocast, against float64: in evaluation, and in training, where
    h + z is rounded to bfloat16."""
    policy, batch = make_policy(name), batch_of(*ROWS)
    z = 3e-3 * torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(0))

    def change(policy, z, grad=False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=z.dtype == torch.float32):
            encoded = policy.encode(**batch)
            return torch.stack(
                [a - b for a, b in zip(policy.pair_logps(encoded, z), policy.pair_logps(encoded, None), strict=True)]
            )

    low, rounded = change(policy, z), change(policy, z, grad=True)
    with torch.no_grad():
        encoded = policy.encode(**batch)
        encoded.tokens = encoded.tokens.double()
        policy.backbone.double()
        exact = torch.stack(policy.pair_logps(encoded, z.double())) - torch.stack(policy.pair_logps(encoded, None))
    error = lambda found: ((found.double() - exact).norm() / exact.norm()).item()  # noqa: E731
    assert error(low) < 0.05 < 0.2 < error(rounded), (error(low), error(rounded))


def test_generation_in_bfloat16_adds_the_whole_z():
    policy = make_policy(code_scale=1e-3)
    policy.backbone.bfloat16()
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ids = torch.tensor([[5, 6, 7]])
    plain = LatentPolicy(policy.backbone).generate(ids, **options).logits[0][0]
    with torch.no_grad():
        expected = policy.latent.codebook[2] @ policy.head.weight.float().t()
    added = policy.generate(ids, code=2, **options).logits[0][0] - plain
    torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-5)
