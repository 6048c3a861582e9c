"""Training of low-rank adapters: what is trained, that it starts as the plain model, and what is saved."""

import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from small import LATENT, OBJECTIVES, make_base, run, tokenised
from tiny import make_backbone

from lpc.cli import UserError
from lpc.config.models import Lora
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.files import read_json
from lpc.model.policy import LatentPolicy
from lpc.model.quantization import hold_in_4_bits, round_to_4_bits
from lpc.training import adapters
from lpc.training.adapters import add_adapters
from lpc.training.checkpoints import complete_checkpoints

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[qlora]'"
)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed: pip install -e '.[lora]'")

FULL = Lora(rank=64, alpha=64.0)  # no layer of the tiny model has more inputs or outputs


@torch.no_grad()
def logps(policy: LatentPolicy) -> torch.Tensor:
    tokens = tokenised()
    batch = collate([tokens[i] for i in range(len(tokens))])
    return torch.stack(policy.pair_logps(policy.encode(**{name: batch[name] for name in MODEL_INPUTS}), None))


@needs_peft
@pytest.mark.parametrize("latent", [None, LATENT])
def test_the_first_loss_is_the_plain_ones_and_adapters_alone_learn(tmp_path, latent):
    base = dict(make_base().named_parameters())
    _, plain = run(tmp_path / "plain", latent=latent)
    policy = LatentPolicy(make_base())
    merge = add_adapters(policy, FULL, seed=0)
    trainer, lines = run(tmp_path / "lora", latent=latent, policy=policy, learning_rate=1e-2)
    assert lines[0]["loss"] == plain[0]["loss"]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    trained = {name for name, parameter in policy.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in policy.backbone.named_parameters() if "lora_" in name}
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    for name, parameter in policy.backbone.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name

    before = logps(policy)
    merge()
    torch.testing.assert_close(logps(policy), before, rtol=1e-5, atol=1e-4)
    assert (before - logps(LatentPolicy(make_base()))).abs().max() > 1, "training changed the model"
    after = dict(policy.backbone.named_parameters())
    assert after.keys() == base.keys()
    adapted = {name for name in base if not torch.equal(after[name], base[name])}
    assert adapted == {name for name in base if "_proj." in name}, "all linear layers but the head"


@needs_peft
def test_the_last_layers_alone_get_adapters_and_a_backward_pass(tmp_path):
    policy = LatentPolicy(make_base())
    first, last = policy.decoder.layers
    asked = []
    first.register_forward_hook(lambda layer, inputs, output: asked.append(output.requires_grad))
    merge = add_adapters(policy, Lora(rank=4, last_layers=1), seed=0)
    assert not any("lora_" in name for name, _ in first.named_parameters())
    assert sum("lora_A" in name for name, _ in last.named_parameters()) == 7, "q, k, v, o, gate, up, down"
    _, lines = run(tmp_path, latent=LATENT, policy=policy, learning_rate=1e-2)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert asked and not any(asked)
    merge()
    assert policy.backbone.state_dict().keys() == make_base().state_dict().keys()


@needs_peft
def test_more_last_layers_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"last_layers: 3, but the base has 2 layers; lower it"):
        add_adapters(LatentPolicy(make_base()), Lora(last_layers=3), seed=0)


@needs_peft
@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_over_4_bits_train_as_over_the_whole_weights(tmp_path, precision):
    """The base is on the grid of 4 bits. So losses, gradients and merged weights are those of plain adapters."""

    def train(folder, *, hold: bool):
        policy = LatentPolicy(make_backbone(hidden=64))
        round_to_4_bits(policy)
        if hold:
            hold_in_4_bits(policy, stored=torch.float32, compute=getattr(torch, precision), device="cpu")
        merge = add_adapters(policy, Lora(rank=4), seed=0)
        # Without a reference: that at hand is of the base before it was rounded.
        options = {"objective": OBJECTIVES["simpo"], "precision": precision, "learning_rate": 1e-2}
        _, lines = run(folder, policy=policy, **options)
        before = logps(policy)
        merge()
        if precision == "float32":
            torch.testing.assert_close(logps(policy), before, rtol=1e-5, atol=1e-4)
        return [line["loss"] for line in lines], dict(policy.backbone.named_parameters())

    wanted, weights = train(tmp_path / "whole", hold=False)
    losses, merged = train(tmp_path / "held", hold=True)
    assert wanted[-1] < 0.9 * wanted[0]
    assert losses == pytest.approx(wanted, rel=1e-4 if precision == "float32" else 2e-2)
    assert merged.keys() == weights.keys() and all(value.dtype == torch.float32 for value in merged.values())
    for name, value in merged.items():
        close = {"rtol": 0, "atol": 1e-4 if precision == "float32" else 5e-2}
        torch.testing.assert_close(value, weights[name], **close, msg=lambda text, name=name: f"{name}: {text}")


@needs_peft
def test_checkpoints_hold_the_trained_weights_alone(tmp_path):
    policy = LatentPolicy(make_base())
    add_adapters(policy, Lora(rank=4), seed=0)
    run(tmp_path, latent=LATENT, policy=policy, save_minutes=1e-9)
    checkpoint = complete_checkpoints(tmp_path / "checkpoints")[-1]
    saved = load_file(checkpoint / "model.safetensors")
    assert saved.keys() == policy.trained_parameters().keys()
    assert all("lora_" in name or name.startswith("latent.") for name in saved)
    with pytest.raises(UserError, match="not of the parameters that are trained"):
        LatentPolicy(make_base()).load_trained_parameters(checkpoint / "model.safetensors")


@needs_peft
def test_a_resumed_training_is_bit_equal(tmp_path):
    """With dropout, whose random numbers belong to the state, too."""

    def train(folder):
        policy = LatentPolicy(make_base())
        add_adapters(policy, Lora(rank=4, dropout=0.3), seed=0)
        trainer, lines = run(folder, latent=LATENT, policy=policy, save_minutes=1e-9)
        return trainer, {name: value.clone() for name, value in trainer.policy.state_dict().items()}, lines

    _, whole, lines = train(tmp_path)
    middle, last = complete_checkpoints(tmp_path / "checkpoints")
    assert read_json(middle / "complete.json")["without_moments"] == []
    shutil.rmtree(last)
    trainer, resumed, again = train(tmp_path)
    assert trainer.totals["resumed_from"] == [4]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    drop = ("tokens_per_second", "memory_gib")
    strip = lambda rows: [{k: v for k, v in row.items() if k not in drop} for row in rows]  # noqa: E731
    assert strip(lines) == strip(again)


@needs_peft
def test_adapters_are_drawn_by_the_seed_alone():
    def drawn(seed: int) -> list[torch.Tensor]:
        policy = LatentPolicy(make_base())
        state = torch.get_rng_state()
        add_adapters(policy, Lora(rank=4), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return [value for name, value in policy.backbone.named_parameters() if "lora_A" in name]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))


@needs_peft
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["lm_head"], "names the head or the embeddings"),
        (["embed_tokens"], "names the head or the embeddings"),
        (["nothing"], "cannot be adapted"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(targets, words):
    with pytest.raises(UserError, match=words) as caught:
        add_adapters(LatentPolicy(make_backbone()), Lora(target_modules=targets), seed=0)
    assert "\n" not in str(caught.value)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft, .* pip install 'lpc\[lora\]'"):
        adapters.load_peft()
