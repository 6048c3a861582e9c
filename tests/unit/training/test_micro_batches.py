"""Micro-batches by tokens: what they hold, and that they change no gradient."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from small import LATENT, run, tokenised
from test_trainer import GROUPED

from lpc.cli import UserError
from lpc.config.models import Recipe, Training
from lpc.training.micro_batches import MicroBatches
from lpc.training.train import training_arguments


def items(lengths: list[int]) -> list[dict]:
    ids = lambda count: np.arange(1, count + 1, dtype=np.int32)  # noqa: E731
    rows = enumerate(lengths)
    return [{"index": row, "prompt": ids(2), "chosen": ids(1), "rejected": ids(length - 3)} for row, length in rows]


@pytest.mark.parametrize("seed", range(20))
def test_micro_batches_hold_all_pairs_once_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    together, budget = int(rng.integers(1, 4)), int(rng.integers(20, 120))
    lengths = rng.integers(4, 60, size=together * int(rng.integers(1, 12)))
    found = MicroBatches(budget, together)(items(lengths.tolist()))
    rows = [batch["index"].tolist() for batch in found]
    everything = list(itertools.chain(*rows))
    assert sorted(everything) == list(range(len(lengths)))
    of_chunks = lengths.reshape(-1, together).sum(1)
    for batch, indices in zip(found, rows, strict=True):
        chunks = np.array(indices).reshape(-1, together)
        assert (np.diff(chunks, axis=1) == 1).all() and (chunks[:, 0] % together == 0).all(), "groups are whole"
        assert len(chunks) == 1 or batch["input_ids"].numel() <= budget
    order = [of_chunks[row // together] for row in everything[::together]]
    assert order == sorted(order, reverse=True), "similar lengths, the longest first"
    sizes = [batch["input_ids"].numel() for batch in found]
    for size, after in zip(sizes, found[1:], strict=False):
        assert size + lengths[after["index"][:together].numpy()].sum() > budget, "none is smaller than it must be"


@pytest.mark.parametrize("latent", [None, LATENT, GROUPED], ids=["plain", "lpc", "grouped"])
def test_the_gradient_is_that_of_equal_micro_batches(tmp_path, latent):
    """Losses, lengths of gradients and weights of three steps; micro-batches of 1 to many pairs."""
    tokens = dataclasses.replace(tokenised(), groups=np.arange(48, dtype=np.int32) % 3)  # that one is shared
    settings = {"latent": latent, "tokens": tokens, "epochs": 1}
    whole, expected = run(tmp_path / "a", **settings, micro_batch_size=16)
    parts, lines = run(tmp_path / "b", **settings, micro_batch_tokens=150)
    for one, two in zip(expected, lines, strict=True):
        for key in ("loss", "margin", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-6), key
    for (name, a), b in zip(whole.policy.named_parameters(), parts.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_what_a_budget_of_tokens_does_not_go_with(tmp_path):
    training = Training(micro_batch_tokens=100)
    with pytest.raises(UserError, match=r"training\.micro_batch_tokens: not with FSDP"):
        training_arguments(training, seed=0, output_dir=tmp_path, processes=2, sharded=True)
    latent = {"kind": "lpc", "information_weight": 0.1}
    with pytest.raises(ValueError, match="requires micro_batch_tokens: null"):
        Recipe.model_validate({"objective": {"name": "dpo"}, "latent": latent, "training": training.model_dump()})
