"""What a step computes anew in its backward pass: the same gradients, bit for bit, with less memory."""

import pytest
import torch
from small import run
from tiny import make_backbone
from transformers.models.llama.modeling_llama import LlamaMLP

from lpc.config.models import Lora
from lpc.model.policy import LatentPolicy
from lpc.training.activations import recompute, recompute_gates
from lpc.training.adapters import add_adapters

IDS = torch.arange(1, 25)[None]


def step(backbone) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a loss, and the bytes that the forward pass keeps besides the weights."""
    backbone.train()
    weights, kept = {p.untyped_storage()._cdata for p in backbone.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = backbone(input_ids=IDS, use_cache=False).logits.float().log_softmax(-1)[..., 3].mean()
    bytes_kept = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    return {name: p.grad for name, p in backbone.named_parameters()}, bytes_kept


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "granite"])
def test_gated_mlps_keep_two_tensors_less_and_have_the_same_gradients(kind):
    wanted, before = step(make_backbone(kind))
    backbone = make_backbone(kind)
    assert recompute_gates(backbone) == 2
    found, after = step(backbone)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())
    layers, float32 = 2, 4
    assert before - after == layers * 2 * IDS.numel() * backbone.config.intermediate_size * float32


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_autocast_has_gradients_of_the_same_rounding(bias):
    backbones = [make_backbone(mlp_bias=bias) for _ in range(2)]
    recompute_gates(backbones[1])
    with torch.autocast("cpu", torch.bfloat16):
        (wanted, _), (found, _) = map(step, backbones)
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0.02, atol=0.02 * gradient.abs().max().item(), msg=name)


def test_mlps_of_another_form_and_with_adapters_stay_as_they_are():
    assert recompute_gates(make_backbone("gpt2")) == recompute_gates(make_backbone("gemma2")) == 0

    class Scaled(LlamaMLP):
        def forward(self, x):
            down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
            return 2 * down_proj

    assert recompute_gates(Scaled(make_backbone().config)) == 0
    policy = LatentPolicy(make_backbone())
    add_adapters(policy, Lora(rank=2, last_layers=1), seed=0)
    assert recompute_gates(policy.backbone) == 1, "the layer without adapters alone"


def test_adapters_that_are_added_afterwards_are_used():
    policy = LatentPolicy(make_backbone())
    recompute_gates(policy.backbone)
    add_adapters(policy, Lora(rank=2), seed=0)
    gradients, _ = step(policy.backbone)
    assert all(gradients[name] is not None for name in gradients if "down_proj.lora_" in name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_computes_layers_or_gates_anew(tmp_path, checkpointing, monkeypatch):
    chosen = []
    monkeypatch.setattr("lpc.training.train.recompute", lambda policy, **how: chosen.append(how))
    _, plain = run(tmp_path / "plain", gradient_checkpointing=checkpointing)
    monkeypatch.setattr("lpc.training.train.recompute", recompute)
    _, lines = run(tmp_path / "anew", gradient_checkpointing=checkpointing)
    assert chosen == [{"layers": checkpointing}]
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]
