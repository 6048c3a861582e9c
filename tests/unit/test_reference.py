"""Log-probabilities and feature statistics of the base model."""

import numpy as np
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import reference
from lpc.data.tokens import tokenize_pairs
from lpc.model.policy import LatentPolicy
from lpc.reference import Moments, reference_logps
from lpc.scoring import prompt_states

TOKENS = {"max_length": 64, "max_prompt_length": 32}


def test_statistics_hold_hidden_states_of_training_prompts(monkeypatch):
    """The sample is h_x of evenly spaced training pairs, in their order, whatever the batches; its moments are those
    that stand beside it where it holds them all."""
    tokens, policy = tokenize_pairs(make_pairs(48), make_tokenizer(), **TOKENS), LatentPolicy(make_backbone())
    train_rows = np.arange(48) % 3 > 0
    options = {"batch_size": 5, "precision": "float32"}
    _, statistics = reference_logps(policy, tokens, train_rows, **options)
    expected = prompt_states(policy, tokens, **options).cpu()[train_rows]
    torch.testing.assert_close(statistics["prompt.sample"], expected)
    torch.testing.assert_close(statistics["prompt.mean"], expected.mean(0), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(reference, "SAMPLE", 8)
    _, statistics = reference_logps(policy, tokens, train_rows, **options)
    torch.testing.assert_close(statistics["prompt.sample"], expected[::4])


def test_features_that_never_vary_have_a_standard_deviation_of_one():
    """Sums of squares leave a rest of rounding in some of them, by which nothing must be divided."""
    generator = torch.Generator().manual_seed(0)
    constant = torch.cat([torch.zeros(1), 1000 * torch.rand(50, generator=generator)])
    varying = 1000.1 + torch.randn(700, 1, generator=generator)
    moments = Moments()
    for part in varying.split(7):
        moments.add(torch.cat([constant.expand(7, -1), part], -1))
    mean, std = moments.mean_std()
    torch.testing.assert_close(mean, torch.cat([constant, varying.mean(0)]))
    rest = moments.squares / moments.count - (moments.total / moments.count) ** 2
    assert rest[:-1].max() > 0
    assert std[:-1].tolist() == [1.0] * 51
    assert std[-1].item() == pytest.approx(varying.std(correction=0).item(), rel=1e-4)
