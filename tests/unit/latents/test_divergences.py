"""Divergences against torch's own, by hand, and at extremes."""

import math

import pytest
import torch

from lpc.latents.parts import divergences


def close(actual, expected, **options):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **options)


def test_categorical_kl_by_hand():
    """q = (3/4, 1/4), p = (1/2, 1/2): KL = 3/4·log(3/2) + 1/4·log(1/2)."""
    q, p = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    close(divergences.categorical_kl(q, p), [0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    close(divergences.categorical_kl(q, q), [0.0])


def test_categorical_kl_against_torch_and_extremes():
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(50, 9, generator=generator, dtype=torch.float64) * 5
    p = torch.randn(50, 9, generator=generator, dtype=torch.float64) * 5
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
    )
    close(divergences.categorical_kl(q, p), expected, rtol=1e-10, atol=1e-12)
    assert (divergences.categorical_kl(q, p) >= 0).all()
    extreme = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = divergences.categorical_kl(extreme, torch.zeros(1, 3))
    value.sum().backward()
    close(value.detach(), [math.log(3)])
    assert torch.isfinite(extreme.grad).all()


def test_gaussian_kl_against_torch():
    generator = torch.Generator().manual_seed(5)
    a, b, c, d = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, b.exp()), normal(c, d.exp())).sum(-1)
    close(divergences.gaussian_kl(a, b, c, d), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ([[0.25] * 4] * 3, 0.0),  # uniform for every prompt
        ([[1.0, 0.0, 0.0, 0.0]] * 3, 0.0),  # one code for every prompt
        ([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], math.log(2)),  # a code for each prompt
    ],
)
def test_code_information_values(prior, expected):
    """I(code; prompt) of a batch by hand: nothing where the prior ignores the prompt, ln 2 for two prompts."""
    close(divergences.code_information(torch.tensor(prior).log()).mean(), expected, atol=1e-6, rtol=0)


def test_code_information_is_the_difference_of_entropies():
    """Mean over the batch and gradient equal those of H(mean p) − mean H(p), and no pair's share is negative."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 5, dtype=torch.float64)).requires_grad_()
    values = divergences.code_information(logits)
    (gradient,) = torch.autograd.grad(values.mean(), logits)
    p = logits.softmax(-1)
    naive = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(-1).mean()
    (expected,) = torch.autograd.grad(naive, logits)
    close(values.mean(), naive)
    close(gradient, expected)
    assert (values > 0).all() and values.mean() < math.log(5)
