"""Arguments of a training, and what is refused before it starts."""

import os

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from small import OBJECTIVES, TOKENS, TRAINING, make_base, run, tokenised
from tiny import make_tokenizer

from lpc import objectives
from lpc.cli import UserError
from lpc.config.models import Training
from lpc.data.tokens import tokenize_pairs
from lpc.model.policy import LatentPolicy
from lpc.scoring import attach_reference
from lpc.training.train import train


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
