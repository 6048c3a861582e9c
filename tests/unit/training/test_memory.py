"""Main memory of a sharded training: the first process alone holds a copy of the base, in the type it is stored in."""

import json

import pytest
import torch
import transformers
from small import train_step_together
from test_fsdp import launch_file
from tiny import make_backbone, make_tokenizer

from lpc.files import read_json, write_json
from lpc.model.backbone import empty_backbone, load_backbone, stored_dtype
from lpc.model.loading import load_empty


@pytest.fixture(scope="module")
def large(tmp_path_factory, inputs):
    """A base of 84 million parameters in bfloat16: 161 MiB as stored, 322 in float32."""
    folder = tmp_path_factory.mktemp("large")
    # Narrow and thick: what is measured of the head takes the square of the width.
    config = transformers.LlamaConfig(
        **{"vocab_size": 384, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 3},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256},
    )
    base = transformers.LlamaForCausalLM(config).bfloat16()
    base.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    write_json(folder / "base.json", read_json(inputs / "base.json") | {"path": str(folder / "base")})
    return folder, sum(2 * p.numel() for p in base.parameters()) / 2**20


def test_no_process_but_the_first_holds_a_copy(inputs, large, tmp_path):
    folder, stored = large
    settings = {"objective": "simpo", "latent": None, "batch_size": 4, "micro_batch_size": 1}
    settings |= {"base": folder / "base.json", "module": "measured_step", "save_minutes": 60}
    train_step_together(inputs, tmp_path, expect=85, environment=launch_file(), **settings)
    first, other = (json.loads((tmp_path / f"memory-{rank}.json").read_text()) for rank in range(2))
    # Peaks of resident memory above the start, in MiB, when weights are loaded and when they are sharded: half of them
    # in float32 is as much as all of them in bfloat16.
    assert first["loaded"] < 2.5 * stored, first  # with the pairs' tokens; above 3 in float32
    assert other["loaded"] < 0.4 * stored, other
    assert stored < other["sharded"] < 1.7 * stored, other
    # Between two micro-batches each process has its part of the gradients.
    assert first["gradients"] == other["gradients"] == "sharded"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_empty_backbone_is_the_loaded_one_without_weights(tmp_path, kind, tied):
    make_backbone(kind, tie_word_embeddings=tied).bfloat16().save_pretrained(tmp_path)
    empty, loaded = empty_backbone(tmp_path), load_backbone(tmp_path)
    assert all(p.is_meta and p.dtype == torch.float32 for p in empty.parameters())
    assert empty.training == loaded.training and empty.config.to_dict() == loaded.config.to_dict()
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (empty, loaded)]
    assert shapes[0] == shapes[1]
    buffers = dict(loaded.named_buffers())
    assert dict(empty.named_buffers()).keys() == buffers.keys()
    for name, buffer in empty.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name


def test_weights_come_in_the_type_they_are_stored_in(inputs, tmp_path):
    backbone = make_backbone(tie_word_embeddings=True)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        backbone.to(dtype).save_pretrained(tmp_path / "base")
        assert stored_dtype(tmp_path / "base") == dtype
    backbone.model.norm.float()
    backbone.save_pretrained(tmp_path / "base")
    assert stored_dtype(tmp_path / "base") == torch.float32
    make_tokenizer().save_pretrained(tmp_path / "base")
    write_json(tmp_path / "base.json", read_json(inputs / "base.json") | {"path": str(tmp_path / "base")})
    policy, _, weights = load_empty(tmp_path / "base.json", with_weights=True)
    assert all(p.is_meta for p in policy.parameters())
    assert weights.keys() == dict(backbone.named_parameters()).keys()
    for name, parameter in backbone.named_parameters():
        assert torch.equal(weights[name], parameter.float()), name


def test_a_launch_file_that_shards_needs_gpus(inputs, tmp_path):
    """accelerate would leave the weights whole on CPUs, and this training has none yet."""
    errors = train_step_together(inputs, tmp_path, expect=1, environment=launch_file(), latent=None)
    assert "error: the launch file asks for FSDP, which accelerate does not run on cpu with 2 processes" in errors
