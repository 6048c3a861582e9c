"""Models without weights, for processes that get theirs from the first, and the type that weights are stored in."""

import pytest
import torch
from tiny import make_backbone, make_tokenizer

from lpc.files import read_json, write_json
from lpc.model.backbone import empty_backbone, load_backbone, stored_dtype
from lpc.model.loading import load_empty


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
