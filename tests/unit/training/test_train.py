"""Arguments of a training, and what is refused before it starts."""

import copy
import os

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from small import LATENT, OBJECTIVES, TOKENS, TRAINING, make_base, run, tokenised
from tiny import make_backbone, make_tokenizer

from lpc import objectives
from lpc.cli import UserError
from lpc.config.models import Training
from lpc.data.tokens import PairTokens, tokenize_pairs
from lpc.model.attention import LAYOUTS, Loop
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.scoring import attach_reference
from lpc.training.train import check_attention, train


@pytest.mark.parametrize(
    "training,message",
    [
        ({"batch_size": 64}, "fewer than training.batch_size"),
        ({"micro_batch_size": 5}, "micro_batch_size: 5 does not divide"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(tmp_path, training, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **training)


def test_more_processes_than_started_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 processes were asked for, 1 with"):
        train(
            LatentPolicy(make_base()),
            tokenised(),
            objective=objectives.parse(OBJECTIVES["dpo"]),
            training=Training(**TRAINING),
            seed=0,
            checkpoints=tmp_path,
            log_file=tmp_path / "l",
            processes=2,
        )


@pytest.mark.parametrize(
    "training,device,kind,message",
    [
        ({"attention": "varlen"}, "cpu", "llama", "varlen needs a CUDA GPU, but this training runs on cpu; "),
        ({"attention": "varlen"}, "cuda", "llama", "varlen needs training.precision bfloat16, not float32; "),
        ({"attention": "varlen", "precision": "bfloat16"}, "cuda", "llama", "varlen needs torch.nn.attention.varlen, "),
        ({"attention": "flex"}, "cuda", "mamba", "flex is for packed pairs, but those of mamba are padded, since "),
        ({"attention": "flex"}, "cuda", "llama", "flex needs a C compiler for torch.compile; "),
    ],
)
def test_attention_is_refused_where_it_cannot_run(monkeypatch, training, device, kind, message):
    monkeypatch.setenv("PATH", "")
    if training.get("precision") == "bfloat16":
        monkeypatch.setattr("lpc.training.train.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"^training.attention: {message}.*set it to loop$"):
        check_attention(Training(**TRAINING | training), LatentPolicy(make_backbone(kind)), torch.device(device))


def test_the_attention_of_the_settings_is_used(tmp_path, monkeypatch, caplog):
    """A layout that counts its calls, under another name: two layers, three steps of two micro-batches, one check."""
    calls = []

    class Counting(Loop):
        def attend(self, *tensors, **options):
            calls.append(1)
            return super().attend(*tensors, **options)

    caplog.set_level("INFO", "lpc")
    monkeypatch.setitem(LAYOUTS, "varlen", Counting)
    monkeypatch.setattr("lpc.training.train.check_attention", lambda *settings: None)
    _, lines = run(tmp_path / "a", epochs=1, attention="varlen")
    assert len(calls) == 2 * 3 * 2 and "attention of packed pairs: varlen, on cpu" in caplog.text
    _, plain = run(tmp_path / "b", epochs=1)
    assert len(calls) == 2 * 3 * 2 and "attention of packed pairs: loop, on cpu" in caplog.text
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]


def test_padded_pairs_train(tmp_path):
    """gpt-oss: the first batch is its reference, which is scored in other batches, and the loss falls."""
    base = make_backbone("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    policy = LatentPolicy(base)
    tokens = copy.copy(tokenised())
    tokens.reference, _ = reference_logps(policy, tokens, np.ones(len(tokens), bool), batch_size=5, precision="float32")
    trainer, lines = run(tmp_path, latent=LATENT, tokens=tokens, policy=policy)
    assert policy.obstacle == "its attention has sinks"
    assert trainer.totals["first_loss"] == pytest.approx(np.log(2), abs=1e-2)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_the_step_trains_from_the_reference_that_its_file_holds(inputs):
    """The reference step's file, joined again, is the reference of these pairs to float32 rounding."""
    pairs = parquet.read_table(inputs / "pairs.parquet")
    tokens = tokenize_pairs(pairs, make_tokenizer(), **TOKENS)
    attach_reference(tokens, pairs, inputs / "reference-float32.parquet")
    np.testing.assert_allclose(tokens.reference, tokenised().reference, rtol=1e-6)


def test_deterministic_training_asks_torch_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        _, lines = run(tmp_path / "a", epochs=1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
    _, plain = run(tmp_path / "b", epochs=1)
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]


def grouped(groups) -> PairTokens:
    tokens = copy.copy(tokenised())
    tokens.groups = None if groups is None else np.array(groups, np.int32)
    return tokens


@pytest.mark.parametrize(
    "groups,size,message",
    [
        (None, 2, "48 of 48 training pairs have no group"),
        ([-1, -1, -1] + [0] * 45, 2, "but 3 of 48 training pairs have no group"),
        (np.arange(48) % 16, 4, "no group has 4 training pairs, the largest has 3"),
        ([0] * 12 + list(range(1, 37)), 4, "12 training pairs in whole groups of 4: fewer than training.batch_size"),
    ],
)
def test_groups_that_give_no_batch_are_refused(tmp_path, groups, size, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, latent={"kind": "exact", "codes": 3, "group_size": size}, tokens=grouped(groups))
    assert "\n" not in str(caught.value)


def test_pairs_of_small_groups_are_counted(tmp_path, caplog):
    groups = [0] * 24 + [1] * 22 + [2, 2]
    run(tmp_path, latent={"kind": "exact", "codes": 3, "group_size": 4}, tokens=grouped(groups), epochs=1)
    assert "2 training pairs are of groups of fewer than 4 pairs" in caplog.text


def test_a_device_s_part_of_a_batch_holds_whole_groups(tmp_path):
    """Batches of 6 on a device that could take 8: then micro-batches are of 6."""
    with pytest.raises(UserError, match="4 must divide the 6 pairs that a device takes at once"):
        run(tmp_path, latent={"kind": "exact", "codes": 3, "group_size": 4}, batch_size=6)
