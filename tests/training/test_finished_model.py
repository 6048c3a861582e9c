"""The finished model of the training step: its type, its weights under other settings, and its summary."""

import json
import shutil
from importlib.util import find_spec

import pytest
import safetensors.torch
import torch
from processes import train_step, train_step_together
from small import TOKENS, lines_of, make_base, tokenised
from steps import run_step
from tiny import make_backbone, make_tokenizer

from lpc.files import read_json, write_json
from lpc.model.policy import LatentPolicy

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed: pip install -e '.[lora]'")


@pytest.mark.parametrize("save_dtype,expected", [(None, "bfloat16"), ("float32", "float32")])
def test_the_step_saves_in_the_type_asked_for_and_says_so(inputs, tmp_path, save_dtype, expected):
    """A base of tied embeddings in bfloat16: its config states the saved type, and what is tied is stored once."""
    tied = make_backbone(tie_word_embeddings=True).to(torch.bfloat16)
    tied.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    record = read_json(inputs / "base.json") | {"path": str(tmp_path / "base"), "dtype": "bfloat16"}
    write_json(tmp_path / "base.json", record)
    files = {"base": tmp_path / "base.json", "objective": "simpo"}
    train_step(inputs, tmp_path, latent=None, save_minutes=60, save_dtype=save_dtype, **files)
    weights = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{expected}"}
    assert "lm_head.weight" not in weights
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == expected
    summary = read_json(tmp_path / "train.json")
    assert (
        summary["parameters"] == sum(p.numel() for p in tied.parameters()) == sum(v.numel() for v in weights.values())
    )
    assert summary["saved"]["dtype"] == expected and ("undone" in summary["saved"]) == (expected == "bfloat16")
    assert summary["cut"] == tokenised().cut_shares()
    assert lines_of(tmp_path)


def test_the_step_saves_the_same_model(inputs, tmp_path):
    """Files of the model, and what rounding them undid: of the whole weights, not of those in bfloat16."""
    found = []
    for name in ("adamw", "adamw_split"):
        settings = {"precision": "bfloat16", "save_dtype": "bfloat16", "learning_rate": 1e-5, "weight_decay": 0.1}
        settings |= {"max_grad_norm": 0.5, "epochs": 1, "save_minutes": 60}
        train_step(inputs, tmp_path / name, optimizer=name, **settings)
        found.append(read_json(tmp_path / name / "train.json"))
    assert 0 < found[0]["saved"]["undone"] < 1
    for key in ("files", "saved", "last_loss"):
        assert found[0][key] == found[1][key], key


@needs_peft
def test_the_step_saves_a_merged_checkpoint(inputs, tmp_path):
    train_step(inputs, tmp_path, lora={"rank": 4, "target_modules": ["q_proj", "v_proj"]}, learning_rate=1e-2)
    record, policy = read_json(tmp_path / "train.json"), LatentPolicy.from_pretrained(tmp_path / "model")
    assert record["identity"]["spec"]["training"]["lora"]["rank"] == 4 and record["identity"]["versions"]["peft"]
    assert record["parameters"] == sum(parameter.numel() for parameter in policy.backbone.parameters())
    # Of two layers: 32 × 4 and 4 × 32 of queries, 32 × 4 and 4 × 16 of values.
    assert record["trained_parameters"] == 2 * (128 + 128 + 128 + 64) + record["latent_parameters"]
    base = dict(make_base().named_parameters())
    changed = {name for name, value in policy.backbone.named_parameters() if not torch.equal(value, base[name])}
    assert changed == {f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in (0, 1) for which in "qv"}


@needs_peft
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is missing: pip install -e '.[qlora]'")
def test_the_step_trains_adapters_over_a_quantised_base(inputs, tmp_path):
    """Its first batch is held against the reference of the quantised base; two processes train what one does."""
    make_backbone(hidden=64).bfloat16().save_pretrained(tmp_path / "whole")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    source, base, pairs = (tmp_path / name for name in ("source.json", "base.json", "pairs.parquet"))
    run_step("download_base", {"name": "whole", "model": str(tmp_path / "whole")}, "--output", source)
    spec = {"name": "short", "quantize": "whole"}
    run_step("quantize", spec, "--base", source, "--output", tmp_path / "short", "--record", base)
    shutil.copy(inputs / "pairs.parquet", pairs)
    files = ["--base", base, "--pairs", pairs, "--output", tmp_path / "reference-bfloat16.parquet"]
    files += ["--statistics", tmp_path / "statistics.safetensors"]
    run_step("reference", {"tokens": TOKENS, "precision": "bfloat16", "micro_batch_size": 8}, *files)

    settings = {"lora": {"rank": 4, "target_modules": ["q_proj"]}, "precision": "bfloat16", "latent": None}
    settings |= {"base": base, "learning_rate": 1e-2, "save_dtype": "float32"}
    train_step(tmp_path, tmp_path / "one", **settings)
    train_step_together(tmp_path, tmp_path / "two", **settings)
    one, two = (read_json(tmp_path / name / "train.json") for name in ("one", "two"))
    assert one["identity"]["versions"]["bitsandbytes"] and one["last_loss"] < 0.9 * one["first_loss"]
    assert two["last_loss"] == pytest.approx(one["last_loss"], rel=0.02)
    trained = dict(LatentPolicy.from_pretrained(tmp_path / "one/model").backbone.named_parameters())
    before = dict(LatentPolicy.from_pretrained(tmp_path / "short").backbone.named_parameters())
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


@needs_peft
def test_a_sharded_training_of_adapters_is_refused(inputs, tmp_path):
    errors = train_step(inputs, tmp_path, expect=1, environment={"ACCELERATE_USE_FSDP": "true"}, lora={"rank": 2})
    assert "training.lora: not with FSDP" in errors
