"""Bases on the grid of 4-bit NormalFloat: what is rounded, and that 4 bits hold it exactly."""

import sys
from importlib.util import find_spec

import pytest
import torch
from steps import run_step
from tiny import make_backbone, make_tokenizer
from torch import nn

from lpc.cli import UserError
from lpc.files import read_json
from lpc.model import quantization
from lpc.model.policy import LatentPolicy
from lpc.model.quantization import hold_in_4_bits, linear_layers, round_to_4_bits, whole_weight

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[qlora]'"
)
# The 16 values of the paper's appendix E, between -1 and 1.
GRID = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def whole(kind: str = "llama", **options):
    return make_backbone(kind, hidden=64, **options)


def quantised(dtype: torch.dtype = torch.float32) -> LatentPolicy:
    policy = LatentPolicy(whole().to(dtype))
    round_to_4_bits(policy)
    return policy


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_alone_are_rounded_to_the_nearest_value_of_each_block(dtype):
    before, after = whole().to(dtype), quantised(dtype).backbone
    grid, moved = torch.tensor(GRID), set()
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if torch.equal(old, new):
            continue
        moved.add(name)
        old, new = (weight.detach().float().view(-1, 64) for weight in (old, new))
        values = old.abs().amax(1)[:, None, None] * grid
        nearest = (old[..., None] - values).abs().amin(-1)
        error = 2e-6 if dtype == torch.float32 else 2**-8
        assert ((new[..., None] - values).abs().amin(-1) <= error * new.abs()).all(), f"{name}: on the grid"
        assert ((new - old).abs() <= nearest + error * values.amax(-1)).all(), f"{name}: the nearest values"
    assert moved == {name for name, _ in before.named_parameters() if "_proj." in name}


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_hold_a_quantised_base_exactly(dtype):
    policy = quantised(dtype)
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(policy).items()}
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = policy.backbone(input_ids=ids).logits
        hold_in_4_bits(policy, stored=dtype, compute=dtype, device="cpu")
        actual = policy.backbone(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    held = {name: layer for name, layer in policy.backbone.named_modules() if quantization.is_held(layer)}
    assert held.keys() == before.keys()
    for name, layer in held.items():
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == before[name].numel() // 2
        assert torch.equal(whole_weight(layer), before[name]), name
    assert not any(layer.weight.requires_grad for layer in held.values())


@needs_bitsandbytes
def test_a_biased_layer_and_a_block_of_zeros():
    policy = LatentPolicy(whole("qwen2"))
    layer = policy.backbone.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.weight[0] = 0.0
    round_to_4_bits(policy)
    assert not layer.weight[0].any() and bool(layer.weight.isfinite().all())
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    hold_in_4_bits(policy, stored=torch.float32, compute=torch.float32, device="cpu")
    torch.testing.assert_close(policy.backbone.model.layers[0].self_attn.q_proj(x), expected)


@needs_bitsandbytes
def test_weights_off_the_grid_are_refused():
    with pytest.raises(UserError, match=r"layers\.0.*not those of a quantised base.*delete"):
        hold_in_4_bits(LatentPolicy(whole()), stored=torch.float32, compute=torch.float32, device="cpu")


@needs_bitsandbytes
def test_rows_that_end_within_a_block_are_refused():
    with pytest.raises(
        UserError, match=r"q_proj: 32 inputs cannot be held in 4 bits.*multiple of 64; use another base"
    ):
        round_to_4_bits(LatentPolicy(make_backbone(hidden=32)))


def test_tied_weights_of_the_embeddings_stay_whole():
    policy = LatentPolicy(whole(tie_word_embeddings=True))
    layers = linear_layers(policy)
    assert layers and all(isinstance(layer, nn.Linear) for layer in layers.values())
    assert not any("head" in name for name in layers)


@needs_bitsandbytes
def test_the_step_writes_a_base_of_its_own(tmp_path):
    whole().bfloat16().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    source, record, model = (tmp_path / name for name in ("source.json", "base.json", "model"))
    run_step("download_base", {"name": "own", "model": str(tmp_path / "base")}, "--output", source)
    spec = {"name": "short", "quantize": "own"}
    run_step("quantize", spec, "--base", source, "--output", model, "--record", record)
    base, made = read_json(source), read_json(record)
    assert made["quantization"] == "nf4" and made["path"] == str(model) and made["name"] == "short"
    assert made["sha256"] != base["sha256"]
    same = ("parameters", "dtype", "chat_template", "chat_template_kwargs", "system", "trust_remote_code")
    assert {name: made[name] for name in same} == {name: base[name] for name in same}
    policy = LatentPolicy.from_pretrained(model)
    for name, parameter in quantised(torch.bfloat16).backbone.named_parameters():
        assert torch.equal(policy.backbone.get_parameter(name), parameter.float()), name


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"quantize needs bitsandbytes, .* pip install 'lpc\[qlora\]'"):
        quantization.load_bitsandbytes()
